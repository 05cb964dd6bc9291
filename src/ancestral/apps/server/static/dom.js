// Small helpers for elements, files and numbers.

export const $ = (selector, root = document) => root.querySelector(selector);
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

export function create(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export const clone = (name) => $(`#template-${name}`).content.cloneNode(true);

export function say(status, text, kind = "") {
  status.textContent = shown(text);
  status.dataset.kind = kind;
}

// On one line, as it is read: what is not printed (controls, marks of direction, ends of lines) as its escape.
export const shown = (text) =>
  text.replace(/(?! )[\p{C}\p{Z}]/gu, (found) => {
    const code = found.codePointAt(0).toString(16);
    const short = { "\n": "\\n", "\r": "\\r", "\t": "\\t" }[found];
    return short ?? (code.length < 3 ? `\\x${code.padStart(2, 0)}` : code.length < 5 ? `\\u${code.padStart(4, 0)}` : `\\U${code.padStart(8, 0)}`);
  });

export function show(image, uri) {
  if (image.getAttribute("src") !== uri) image.src = uri;
}

// The share of a slider's track that is filled is drawn by the style sheet.
export function fill(range, share) {
  range.style.setProperty("--share", `${100 * (share ?? (range.value - range.min) / (range.max - range.min || 1))}%`);
}

// A button that plays and pauses: `roll` calls `play` with what each frame does.
export function player(button, roll) {
  let timer = null;
  const set = (next) => {
    clearInterval(timer);
    timer = next;
    button.textContent = timer ? "Pause" : "Play";
  };
  const pause = () => set(null);
  button.addEventListener("click", () => (timer ? pause() : roll()));
  return { play: (frame, wait) => set(setInterval(frame, wait)), pause };
}

// One tab stop for many buttons: arrows, Home and End move within the group.
export function roving(group) {
  group.addEventListener("keydown", (event) => {
    const items = $$("button", group);
    const place = items.indexOf(document.activeElement);
    const wide = getComputedStyle(group).gridTemplateColumns.split(" ").length;
    const moves = { ArrowRight: place + 1, ArrowLeft: place - 1, ArrowDown: place + wide, ArrowUp: place - wide };
    const next = { ...moves, Home: 0, End: items.length - 1 }[event.key];
    if (place < 0 || !items[next]) return;
    event.preventDefault();
    enter(group, items[next]);
    items[next].focus();
  });
}

export function enter(group, item) {
  for (const one of $$("button", group)) one.tabIndex = one === item ? 0 : -1;
}

// The tiles of a grid, as many as there are pictures; each is a button that hands its picture to `chosen`.
export function tiles(grid, uris, name, chosen) {
  while (grid.children.length > uris.length) grid.lastElementChild.remove();
  while (grid.children.length < uris.length) {
    const number = grid.children.length;
    const image = create("img", { alt: "", decoding: "sync" });
    const tile = create("button", { type: "button", className: "tile", tabIndex: number ? -1 : 0 }, image);
    tile.setAttribute("aria-label", `${name} ${number + 1}`);
    tile.addEventListener("click", () => chosen(image.getAttribute("src"), number));
    grid.append(tile);
  }
  uris.forEach((uri, number) => show(grid.children[number].firstElementChild, uri));
}

export function columns(grid, count) {
  grid.style.setProperty("--columns", Math.ceil(Math.sqrt(count)));
}

export const readFile = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name}: cannot be read; choose it again`));
    reader.readAsDataURL(file);
  });

// A picture that is too large or of a format that only the browser knows, as a JPEG of at most 2048 pixels a side.
export async function redrawn(file) {
  const picture = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name}: not a picture that this browser can read; choose a PNG, JPEG or WebP file, not larger than it can open`);
  });
  const scale = Math.min(1, 2048 / Math.max(picture.width, picture.height));
  const canvas = create("canvas", { width: Math.round(scale * picture.width), height: Math.round(scale * picture.height) });
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // a JPEG has no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.95);
}

// [width, height] of a PNG, JPEG or WebP file by its header, before anything is decoded; null where that says neither.
export async function dimensions(file) {
  const head = new DataView(await file.slice(0, 1 << 20).arrayBuffer());
  const word = (at, size) => String.fromCharCode(...new Uint8Array(head.buffer, at, size));
  try {
    if (word(1, 3) === "PNG") return [head.getUint32(16), head.getUint32(20)];
    if (word(0, 4) === "RIFF" && word(8, 4) === "WEBP") {
      const kind = word(12, 4);
      if (kind === "VP8 ") return [head.getUint16(26, true) & 0x3fff, head.getUint16(28, true) & 0x3fff];
      const bits = head.getUint32(21, true);
      if (kind === "VP8L") return [(bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1];
      const [x, y] = [24, 27].map((at) => 1 + head.getUint16(at, true) + (head.getUint8(at + 2) << 16));
      return [x, y];
    }
    // JPEG: segments, each with its length, until a frame (SOF) says its size.
    if (head.getUint16(0) === 0xffd8)
      for (let at = 2; head.getUint8(at) === 0xff; at += 2 + head.getUint16(at + 2)) {
        const marker = head.getUint8(at + 1);
        if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker))
          return [head.getUint16(at + 7), head.getUint16(at + 5)];
      }
  } catch {
    // cut off before that
  }
  return null;
}

// Bytes behind a base64 data URI.
export function size(uri) {
  const code = uri.slice(uri.indexOf(",") + 1);
  return (code.length / 4) * 3 - (code.match(/=*$/)[0].length);
}

export const bytes = (count) => `${count.toLocaleString("en")} bytes`;

export function decimal(value, digits = 3) {
  return Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : "∞";
}

// Numbers of a form by name; empty is null. Throws one line about the first field that cannot be used.
export function values(form) {
  const found = {};
  for (const field of form.elements) {
    if (!field.name || field.closest("label[hidden]") || field.type === "radio") continue;
    if (!field.validity.valid) {
      field.focus();
      throw new Error(`${$("span", field.closest("label")).firstChild.textContent.trim()}: ${requirement(field)}`);
    }
    if (field.value === "") found[field.name] = null;
    else found[field.name] = ["number", "range"].includes(field.type) ? Number(field.value) : field.value;
  }
  return found;
}

function requirement(field) {
  if (field.step === "1" && field.max) return `a whole number from ${field.min} to ${field.max}`;
  return field.max ? `a number from ${field.min} to ${field.max}` : "a number";
}

// The classes of a model in a list of a form; the list is not shown where there are none.
export function offerClasses(list, model) {
  list.append(...model.classes.map((name) => new Option(shown(name), name)));
  list.closest("label").hidden = model.classes.length === 0;
}

// A button that puts another seed into the form, as if it were typed.
export function offerSeeds(form) {
  const button = $(".dice", form);
  button.append(clone("dice"));
  button.addEventListener("click", () => {
    form.elements.seed.value = Math.floor(Math.random() * 1e6);
    for (const name of ["input", "change"]) form.elements.seed.dispatchEvent(new Event(name, { bubbles: true }));
  });
}

// The place of the command that does the same, with a button to copy it; `texts` makes those of other buttons.
export function offerShell(root, others = {}) {
  $(".after", root).prepend(clone("after"));
  copies(root, { command: () => $("code", root).textContent, ...others });
}

// Buttons that copy a text, by its name.
export function copies(root, texts) {
  for (const button of $$(".copy", root)) {
    const label = button.textContent;
    button.addEventListener("click", async () => {
      const text = texts[button.dataset.of]();
      button.textContent = (await copied(text)) ? "Copied" : "Copy it by hand";
      setTimeout(() => (button.textContent = label), 2000);
    });
  }
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // not a secure context, or refused
  }
}

// The command that does the same, and the files that it reads, by name; its lines break between words, never inside one.
export function shell(root, again, files = {}) {
  const after = $(".after", root);
  after.hidden = !again;
  const words = (again ?? "").split(" ").map((textContent) => create("span", { textContent }));
  $("code", after).replaceChildren(...words.flatMap((word, i) => (i ? [" ", word] : [word])));
  $(".files", after)?.remove();
  const links = Object.entries(files).map(([name, href]) => create("a", { href, download: name, textContent: name }));
  if (!again || !links.length) return;
  const named = links.flatMap((link, i) => (i ? [" and ", link] : [link]));
  after.append(create("p", { className: "files" }, "It reads ", ...named, "."));
}
