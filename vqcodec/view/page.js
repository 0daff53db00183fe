// The page of `vqcodec view`: shows one picture at a time, its original under a wipe, and the figures of each level.
"use strict";

const $ = (id) => document.getElementById(id);
const LEVELS = [{ count: 1, label: "top" }, { count: 2, label: "top + middle" }, { count: 3, label: "all levels" }];
let picture = null; // what the server says of the picture that is shown
let levels = 3; // that are shown
let largest = Infinity; // bytes of a file that the server takes
let turn = 0; // counts the pictures that were asked for: the newest is shown, in whatever order the answers come
let lists = 0; // the same for lists of pictures
let wanted = 0; // counts what was asked for: an answer to an older question is not shown

class Refused extends Error {}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refused("vqcodec view does not answer; start it again and load the page again");
  }
  const found = await answer.json();
  if (!answer.ok) throw new Refused(found.error);
  return found;
}

// Does something that may fail, and says on the page where it does.
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}

const settled = () => { $("error").hidden = true; };
const quality = () => Number($("number").value);
const address = (count, kind = "") => `pictures/${picture.number}/levels/${count}${kind}?quality=${quality()}`;

async function list() {
  const mine = ++lists;
  const found = await ask("pictures");
  if (mine !== lists) return found.pictures;
  largest = found.largest;
  $("list").hidden = found.pictures.length < 2;
  $("list").replaceChildren(...found.pictures.map(({ number, name }) => {
    const button = document.createElement("button");
    button.textContent = button.title = name;
    button.dataset.number = number;
    button.onclick = () => attempt(() => open(number));
    return button;
  }));
  return found.pictures;
}

async function open(number) {
  const mine = ++turn;
  const found = await ask(`pictures/${number}`);
  if (mine === turn) await show(found);
}

async function first() {
  const mine = turn;
  const found = await list();
  if (found.length && mine === turn) await open(found[0].number);
}

async function add(file) {
  if (file.size > largest) throw new Refused(`${file.name} is larger than ${largest / 1e6} MB; make the picture smaller`);
  busy(`opening ${file.name}`);
  try {
    const mine = ++turn;
    const found = await ask(`pictures?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
    await list();
    if (mine === turn) await show(found);
  } catch (error) {
    if (!picture) await first(); // whose turn this was
    throw error;
  } finally {
    busy("");
  }
}

async function show(found) {
  settled();
  picture = found;
  for (const button of $("list").children) button.setAttribute("aria-current", button.dataset.number == found.number);
  const small = document.createElement("small");
  const facts = [`${found.width} × ${found.height}`, found.channels, `${bytes(found.bytes)} bytes`, ...found.notices];
  small.textContent = `  ${facts.join(", ")}`;
  $("name").replaceChildren(found.name, small);
  document.title = `${found.name} - vqcodec view`;
  if (found.quality !== null) $("quality").value = $("number").value = found.quality;
  $("quality").disabled = $("number").disabled = found.quality !== null;
  $("restored").removeAttribute("src");
  $("original").removeAttribute("src");
  $("hint").hidden = true;
  for (const id of ["frame", "panel", "right"]) $(id).hidden = false;
  $("left").textContent = found.quality === null ? "original" : "all levels";
  $("right").textContent = "";
  $("frame").classList.add("waiting");
  resize();
  await update(true);
}

// Shows the reconstruction at the chosen quality and levels, then fills in the figures of the other levels.
async function update(anew = false) {
  const mine = ++wanted, late = () => mine !== wanted;
  choose();
  if (anew) fill({});
  const began = performance.now();
  const clock = setInterval(() => late() || busy(`working, ${((performance.now() - began) / 1000).toFixed(0)} s`), 1000);
  busy("working");
  try {
    if (picture.quality === null) await bring("original", late);
    const figures = { [levels]: await ask(address(levels)) };
    if (late()) return;
    await bring("restored", late);
    if (picture.quality !== null) await bring("original", late);
    if (late()) return;
    reveal();
    for (const { count } of LEVELS) {
      figures[count] ??= await ask(address(count));
      if (late()) return;
      fill(figures);
    }
  } finally {
    clearInterval(clock);
    if (!late()) busy("");
  }
}

// Moves to new pixels only when they are there, so that nothing flickers.
async function bring(id, late) {
  const source = id === "original" ? `pictures/${picture.number}/original.png` : address(levels, ".png");
  const next = new Image();
  next.src = source;
  if (late() || $(id).src === next.src) return;
  await next.decode().catch(() => { if (!late()) throw new Refused("the picture could not be shown; load the page again"); });
  if (!late()) $(id).src = next.src;
}

// Uncovers the reconstruction; a .vq file that is shown whole has nothing to stand beside.
function reveal() {
  const same = picture.quality !== null && levels === LEVELS.length;
  $("frame").classList.remove("waiting");
  $("frame").classList.toggle("same", same);
  $("left").hidden = same;
  $("right").textContent = LEVELS[levels - 1].label;
  settled();
}

function choose() {
  for (const row of $("levels").children) {
    const chosen = Number(row.dataset.count) === levels;
    row.classList.toggle("chosen", chosen);
    row.querySelector("input").checked = chosen;
  }
}

function fill(figures) {
  for (const row of $("levels").children) {
    const found = figures[row.dataset.count];
    const texts = found ? [bytes(found.level_bytes), bytes(found.bytes), found.bpp.toFixed(4), distortion(found)] : ["", "", "", ""];
    texts.forEach((text, place) => { row.children[place + 1].textContent = text; });
  }
  const all = figures[3];
  $("save").href = `pictures/${picture.number}/picture.vq?quality=${quality()}`;
  $("save").download = picture.name.replace(/\.[^.]*$/, "") + ".vq";
  const raw = picture.width * picture.height * (picture.channels.startsWith("gray") ? 1 : 3);
  $("facts").textContent = all ? `${(raw / all.bytes).toFixed(0)} times smaller than the plain pixels' ${bytes(raw)} bytes` : "";
}

const bytes = (count) => count.toLocaleString("en-US");

function distortion(found) {
  if (found.mse === null) return "–";
  return found.psnr === null ? "the same pixels" : `${found.psnr.toFixed(2)} dB`;
}

function busy(text) {
  $("busy").textContent = text;
  $("busy").hidden = !text;
}

function resize() {
  if (!picture) return;
  const zoom = document.querySelector("[name=zoom]:checked").value;
  const stage = $("stage").getBoundingClientRect();
  const fit = Math.min(stage.width / picture.width, stage.height / picture.height, 8);
  const scale = zoom === "fit" ? fit : Number(zoom) / devicePixelRatio;
  $("frame").style.width = `${picture.width * scale}px`;
  $("frame").style.height = `${picture.height * scale}px`;
  $("frame").classList.toggle("large", scale * devicePixelRatio >= 2);
}

// Sliders send many events: the newest is worked on when the one before is done.
let running = false, again = false;
async function changed() {
  again = true;
  wanted++; // what is under way ends after its current question
  if (running) return;
  running = true;
  while (again) {
    again = false;
    await attempt(() => update());
  }
  running = false;
}

for (const { count, label } of LEVELS) {
  const row = $("levels").insertRow();
  row.dataset.count = count;
  const mark = document.createElement("label"), radio = document.createElement("input");
  Object.assign(radio, { type: "radio", name: "levels", value: count });
  radio.onchange = () => { levels = count; changed(); };
  mark.append(radio, label);
  row.insertCell().append(mark);
  for (let cell = 0; cell < 4; cell++) row.insertCell();
}
$("wipe").oninput = () => $("frame").style.setProperty("--at", `${$("wipe").value}%`);
$("quality").oninput = () => { $("number").value = $("quality").value; changed(); };
$("number").onchange = () => {
  $("number").value = Math.min(100, Math.max(0, quality() || 0));
  $("quality").value = quality();
  changed();
};
$("zoom").onchange = resize;
new ResizeObserver(resize).observe($("stage"));
$("file").onchange = () => $("file").files.length && attempt(() => add($("file").files[0]));
document.querySelector("label.button").onkeydown = (event) => ["Enter", " "].includes(event.key) && $("file").click();
document.ondragover = (event) => { event.preventDefault(); $("drop").hidden = false; };
document.ondragleave = (event) => { if (!event.relatedTarget) $("drop").hidden = true; };
document.ondrop = (event) => {
  event.preventDefault();
  $("drop").hidden = true;
  if (event.dataTransfer.files.length) attempt(() => add(event.dataTransfer.files[0]));
};
attempt(first);
