// Curves in one small SVG, with the place marked.

const NAMESPACE = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [400, 100];

function draw(tag, attributes) {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// `lines` maps a class to points [x, y]; `marked` then moves the line that marks an x. The view is [x0, x1, y0, y1].
export class Chart {
  constructor(root, lines, view, title) {
    this.view = view;
    const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title });
    for (const [name, points] of Object.entries(lines))
      svg.append(draw("polyline", { class: name, points: points.map((point) => this.#at(...point).join()).join(" ") }));
    this.mark = draw("line", { class: "mark", y1: 0, y2: HEIGHT });
    svg.append(this.mark);
    root.replaceChildren(svg);
  }

  marked(x) {
    const [place] = this.#at(x, 0);
    this.mark.setAttribute("x1", place);
    this.mark.setAttribute("x2", place);
  }

  #at(x, y) {
    const [x0, x1, y0, y1] = this.view;
    return [(WIDTH * (x - x0)) / (x1 - x0 || 1), HEIGHT * (1 - (y - y0) / (y1 - y0 || 1))];
  }
}
