// Inpaint: a mask over the picture in hand, and variants of what it hides.

import { $, offerClasses, offerSeeds, offerShell, shell, show } from "./dom.js";
import { Film } from "./film.js";
import { Mask } from "./mask.js";
import { Task } from "./task.js";
import { Well } from "./well.js";

export class Inpaint {
  constructor(panel, model, hand) {
    const { images, steps, label } = $("form", panel).elements;
    offerClasses(label, model);
    images.max = model.limits.images;
    images.value = Math.min(4, model.limits.images);
    steps.min = model.limits.least_inpaint_steps;
    steps.max = model.limits.steps;
    steps.value = Math.max(model.default.steps, steps.min);
    offerSeeds($("form", panel));
    new Well($(".well", panel), hand, model);
    const mask = new Mask($(".mask", panel), model.shape);
    const film = new Film($(".film", panel));
    film.root.hidden = true;
    hand.addEventListener("change", () => show($(".easel img", panel), hand.image));
    new Task(panel, "inpaint", {
      restore: ({ image }) => hand.put(image),
      body: (found) => {
        if (!hand.image) throw new Error("Choose a picture first");
        if (!mask.count) throw new Error("Paint over what should be drawn anew first");
        const { seed, images, steps, label = null } = found;
        return { image: hand.image, mask: mask.image(), seed, images, steps, label };
      },
      begin: () => {
        film.begin();
        film.root.hidden = false;
        shell(panel, null);
      },
      step: (frame) => film.add(frame),
      done: ({ images: drawn, again }, { image, mask: painted }) => {
        film.end(drawn);
        shell(panel, again, { "image.png": image, "mask.png": painted });
      },
    });
    offerShell(panel);
  }
}
