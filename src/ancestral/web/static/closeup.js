// One picture in a dialog: large, its nearest training images, and the tools it can be sent to.

import { call } from "./api.js";
import { $, $$, create, say, show } from "./dom.js";

const dialog = $("dialog");
let send = () => {};
let nearest = "";

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
  if (nearest !== true) return say(status, nearest);
  say(status, "Looking");
  return neighbours(uri, 8, list)
    .then((metric) => say(status, metric))
    .catch((error) => say(status, error.message, "error"))
    .finally(() => (dialog.dataset.state = "ready"));
}

// Shows the nearest training images in `list`, and says by which distance.
export async function neighbours(image, count, list) {
  const found = await call("POST", "nearest", { image, count });
  list.replaceChildren(
    ...found.neighbours.map((one) => {
      const picture = create("img", { src: one.image, alt: `training image ${one.index}` });
      const text = create("span", { textContent: one.distance.toPrecision(3) });
      return create("figure", {}, picture, create("figcaption", {}, create("small", { textContent: `no. ${one.index}` }), text));
    }),
  );
  return `Distance: ${found.metric}`;
}
