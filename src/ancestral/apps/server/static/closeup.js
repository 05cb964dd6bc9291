// One picture in a dialog: large, its nearest training images, and the tools it can be sent to.

import { patiently } from "./api.js";
import { $, $$, create, say, show } from "./dom.js";

const dialog = $("dialog");
let send = () => {};
let nearest = "";
let looks = 0; // how often neighbours were looked for

export function prepare(model, use) {
  send = use;
  nearest = model.features.nearest;
  $(".close", dialog).addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  for (const button of $$("[data-use]", dialog)) {
    button.hidden = model.features[button.dataset.use] !== undefined && model.features[button.dataset.use] !== true;
    button.addEventListener("click", () => {
      dialog.close();
      send(button.dataset.use, $("img", dialog).getAttribute("src"), button.dataset.end);
    });
  }
}

export function closeup(uri) {
  show($(".closeup > img", dialog), uri);
  $("a[download]", dialog).href = uri;
  const status = $(".status", dialog);
  const list = $(".neighbours", dialog);
  list.replaceChildren();
  dialog.dataset.state = "busy";
  if (!dialog.open) dialog.showModal();
  const looked = ++looks;
  if (nearest !== true) {
    dialog.dataset.state = "ready";
    return say(status, nearest);
  }
  say(status, "Looking; the first time all training images are read");
  const still = () => looked === looks; // another picture may have been opened meanwhile
  const report = (text, kind) => still() && say(status, text, kind);
  return neighbours(uri, 8, list, report, still)
    .then((metric) => report(metric))
    .catch((error) => report(error.message, "error"))
    .finally(() => still() && (dialog.dataset.state = "ready"));
}

// Shows the nearest training images in `list`, if they are `still` asked for, and says by which distance.
export async function neighbours(image, count, list, report, still = () => true) {
  const waiting = (seconds) => report(`The server is busy; asking again in ${seconds} s`);
  const found = await patiently("POST", "nearest", { image, count }, waiting);
  if (!still()) return "";
  list.replaceChildren(
    ...found.neighbours.map((one) => {
      const picture = create("img", { src: one.image, alt: `training image ${one.index}` });
      const text = create("span", { textContent: one.distance.toPrecision(3) });
      return create("figure", {}, picture, create("figcaption", {}, create("small", { textContent: `no. ${one.index}` }), text));
    }),
  );
  return `Distance: ${found.metric}`;
}
