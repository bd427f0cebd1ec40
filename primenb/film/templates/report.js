"use strict";
// Player, timeline and list of shots of a report go together. Without this script the page is a film, tables and links.

const $ = (query, from = document) => from.querySelector(query);
const $$ = (query, from = document) => [...from.querySelectorAll(query)];
const film = JSON.parse($("#film").textContent);
const video = $("video"), view = $(".timeline"), track = $(".track"), playhead = $(".playhead");
const names = ["n", "scene", "first", "stop", "start", "end", "kind", "camera", "own", "size", "drawn"];
const shots = $$("tr.shot").map(row => {
  const shot = Object.fromEntries(JSON.parse(row.dataset.shot).map((value, i) => [names[i], value]));
  return Object.assign(shot, {row, length: shot.end - shot.start, text: row.textContent.toLowerCase()});
});
let now = film.begin;  // seconds since the first image
let current = null;    // the shot at the playhead
let listed = shots;    // the shots of the list, in its order
let wanted = null;     // a time that the player is on its way to
let offset = 0;        // when the player shows the first image
let zoom = 1;

// ---- frames, seconds, timecode

// The last item whose value is at most x.
function lastUpTo(items, x, value = item => item) {
  let low = 0, high = items.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (value(items[middle]) <= x) low = middle; else high = middle - 1;
  }
  return low;
}

// Times of all frames where they are uneven; elsewhere a shot's frames are spread over its length.
const times = film.gaps && (() => {
  const bytes = Uint8Array.from(atob(film.gaps), c => c.charCodeAt(0));
  let t = 0;
  return Array.from(new Uint32Array(bytes.buffer), gap => (t += gap / 1e5));
})();
const shotAt = t => shots[lastUpTo(shots, t + 1e-4, shot => shot.start)];

function frameAt(t) {
  if (times) return lastUpTo(times, t + 1e-4);
  const shot = shotAt(t), share = (t - shot.start) / shot.length;
  return Math.min(shot.stop - 1, shot.first + Math.max(0, Math.floor(share * (shot.stop - shot.first) + 0.01)));
}

function timeOf(n) {
  if (times) return times[Math.max(0, Math.min(n, times.length - 1))];
  const shot = shots[lastUpTo(shots, n, shot => shot.first)];
  return shot.start + (n - shot.first) / (shot.stop - shot.first) * shot.length;
}

const lastFrame = shots[shots.length - 1].stop - 1;
const two = n => String(n).padStart(2, "0");

function timecode(frame) {
  const base = Math.round(film.rate), skip = film.drop ? Math.floor(base / 15) : 0;
  const tens = 600 * base - 9 * skip;
  const day = 144 * tens;
  frame = ((frame % day) + day) % day;
  const ten = Math.floor(frame / tens), rest = frame % tens;
  frame += skip * (9 * ten + Math.floor(Math.max(rest - skip, 0) / (60 * base - skip)));
  const seconds = Math.floor(frame / base), digits = Math.max(2, String(base - 1).length);
  const clock = [seconds / 3600, seconds / 60 % 60, seconds % 60].map(x => two(Math.floor(x))).join(":");
  return clock + (film.drop ? ";" : ":") + String(frame % base).padStart(digits, "0");
}

const codeAt = t => timecode(film.first + Math.round(t * film.rate));

function clock(t) {
  t = Math.round(100 * t) / 100;  // 59.999 is 1:00, not 0:60
  const seconds = t % 60;
  const text = (seconds < 10 ? "0" : "") + +seconds.toFixed(2), minutes = Math.floor(t / 60);
  return minutes < 60 ? `${minutes}:${text}` : `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${text}`;
}

// What a person writes: 240f, 65.2 or 65,2, 1:05.2, 1:00:05.2 or a timecode; NaN for anything else.
function readTime(text) {
  text = text.trim().replace(",", ".");
  if (/^\d+f$/i.test(text)) return timeOf(Math.min(parseInt(text), lastFrame));
  const code = text.match(/^(\d+):(\d+):(\d+)[:;](\d+)$/);
  if (code) {
    const [h, m, s, f] = code.slice(1).map(Number), base = Math.round(film.rate), minutes = 60 * h + m;
    const skip = film.drop ? Math.floor(base / 15) * (minutes - Math.floor(minutes / 10)) : 0;
    return ((60 * minutes + s) * base + f - skip - film.first) / film.rate;
  }
  if (!/^(\d+:){0,2}\d+(\.\d+)?$/.test(text)) return NaN;
  return text.split(":").reduce((sum, part) => 60 * sum + Number(part), 0);
}

// ---- the player

const half = () => { const n = frameAt(now); return n < lastFrame ? (timeOf(n + 1) - timeOf(n)) / 2 : 0.001; };
const clamp = t => Math.min(Math.max(t, film.begin), timeOf(lastFrame));

function seek(t) {
  wanted = clamp(t);
  show(wanted, true);
  if (video.readyState) video.currentTime = offset + wanted + half();  // or once the film has arrived
}

// Shows everywhere that the film is at time t; `go` if the list is to follow in any case.
function show(t, go = false) {
  now = t;
  const n = frameAt(t), exact = timeOf(n);
  playhead.style.left = `${100 * (t - film.begin) / (film.end - film.begin)}%`;
  const [code, seconds, frame] = $(".times").children;
  code.textContent = codeAt(exact);
  seconds.textContent = `${exact.toFixed(3)} s`;
  frame.textContent = `frame ${n}`;
  if (curve.camera) $$(".reading i").forEach((value, i) => value.textContent = valueAt([curve.camera, curve.own][i], t));
  followPlayhead();
  const shot = shotAt(t);
  if (shot !== current) select(shot, go);
  if (!$(".missing").hidden) showStill();
}

function playing(_, frame) {
  if (!video.seeking && wanted === null) {
    const t = frame.mediaTime - offset;
    if (current && $("#loop").checked && !video.paused && (t < current.start - 1e-3 || t >= current.end - 1e-3)) seek(current.start);
    else if (t > film.end - 1e-3 && !video.paused) video.pause();
    else show(Math.min(Math.max(t, film.begin), film.end));
  }
  video.requestVideoFrameCallback(playing);
}

video.addEventListener("seeked", () => { wanted = null; });
video.addEventListener("loadedmetadata", () => {
  const source = $$("source").find(source => source.src === video.currentSrc);
  if (source) offset = Number(source.dataset.offset);
  $(".missing").hidden = true;
  seek(now);
});
if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(playing);
else ["timeupdate", "seeked"].forEach(e => video.addEventListener(e, () => playing(0, {mediaTime: video.currentTime})));
if (!video.requestVideoFrameCallback) video.requestVideoFrameCallback = () => {};
video.addEventListener("click", () => actions.play());
video.addEventListener("volumechange", () => $(".transport").classList.toggle("silent", video.muted));
$("#speed").addEventListener("change", event => { video.playbackRate = Number(event.target.value); });
document.addEventListener("fullscreenchange", () => { video.controls = Boolean(document.fullscreenElement); });
["play", "pause"].forEach(change => video.addEventListener(change, () => {
  $(".transport").classList.toggle("playing", !video.paused);
  $(".times").ariaLive = video.paused ? "polite" : "off";  // nobody can hear every frame
}));

// Without the film, its key-frames are shown, and it can be opened from elsewhere.
function missing() {
  $(".missing").hidden = false;
  showStill();
}
function showStill() {
  if (!film.keys || !current) return;
  const image = $(".missing img"), third = Math.min(2, Math.max(0, Math.floor(3 * (now - current.start) / current.length)));
  const key = keyFrame(current, third + 1);
  if (image.getAttribute("src") !== key) image.src = key;
}
const sources = $$("source");
if (sources.length) sources[sources.length - 1].addEventListener("error", missing); else missing();
if (sources.length && video.networkState === HTMLMediaElement.NETWORK_NO_SOURCE) missing();
$(".missing input").addEventListener("change", event => {
  offset = film.offset;
  wanted = now;  // its first frame may come before its metadata
  video.src = URL.createObjectURL(event.target.files[0]);
});
video.addEventListener("error", missing);

// ---- the shot at the playhead

const keyFrame = (shot, key) => `keyframes/${String(shot.n).padStart(4, "0")}-${key}.jpg`;

function link(href, ...content) {
  const a = document.createElement("a");
  a.href = href;
  a.append(...content);
  return a;
}

function image(src, alt) {
  return Object.assign(document.createElement("img"), {src, alt});
}

function select(shot, go) {
  if (current) current.row.removeAttribute("aria-current");
  const seen = current ? inView(current.row) : false;
  current = shot;
  shot.row.setAttribute("aria-current", "true");
  if ((go || seen) && !shot.row.hidden) shot.row.scrollIntoView({block: "nearest"});
  const panel = $(".now");
  $("h2", panel).textContent = `Shot ${shot.n}` + (shot.scene === null ? "" : ` of scene ${shot.scene}`);
  const after = shot.kind === "none" ? "" : `, after a ${shot.row.cells[4].title || shot.kind}`;
  $("p", panel).textContent = `${codeAt(shot.start)} – ${codeAt(shot.end)}; ${clock(shot.start)} – ${clock(shot.end)}, ` +
    `${shot.length.toFixed(2)} s; frames ${shot.first} – ${shot.stop - 1}${after}`;
  const keys = film.keys ? [1, 2, 3].map(key => [keyFrame(shot, key), `key-frame ${key}`]) : [];
  if (shot.drawn) keys.push([`motion/${String(shot.n).padStart(4, "0")}-2.jpg`, "motion in the next six frames"]);
  $(".keys", panel).replaceChildren(...keys.map(([src, alt]) => Object.assign(link(src, image(src, alt)), {title: alt})));
  const more = $$(`[data-of-shot="${shot.n}"]`, $(".log")).map(element => element.cloneNode(true));
  $(".more", panel).replaceChildren(...more);
}

function inView(element) {
  const box = element.getBoundingClientRect();
  return box.height > 0 && box.bottom > 0 && box.top < innerHeight;
}

// ---- the timeline

const seconds = film.end - film.begin;
const curve = Object.fromEntries(["camera", "own"].map(name => {
  const path = $(`.chart path.${name}`);
  return [name, path && [...path.getAttribute("d").matchAll(/V([\d.]+)H([\d.]+)/g)].map(m => [Number(m[2]), Number(m[1])])];
}));

function valueAt(points, t) {
  const x = 1000 * (t - film.begin) / seconds;
  const at = Math.min(points.length - 1, lastUpTo(points, x, point => point[0]) + (points[0][0] <= x ? 1 : 0));
  return ((100 - points[at][1]) / 100 * film.top).toFixed(3);
}

const xOf = t => (t - film.begin) / seconds * track.clientWidth;
const tAt = x => film.begin + x / track.clientWidth * seconds;

function setZoom(factor, about = now) {
  const most = Math.max(1, Math.min(100000 / view.clientWidth, seconds / 2));
  const left = xOf(about) - view.scrollLeft;
  zoom = Math.min(Math.max(factor, 1), most);
  track.style.width = `${100 * zoom}%`;
  view.scrollLeft = xOf(about) - (left > 0 && left < view.clientWidth ? left : view.clientWidth / 2);
  paint();
}

function followPlayhead() {
  const x = xOf(now) - view.scrollLeft;
  if (zoom > 1 && (x < 0 || x > view.clientWidth)) view.scrollLeft = xOf(now) - view.clientWidth / 10;
}

// Labels, and key-frames where the shots are wide enough, of the part in view.
function paint() {
  const from = tAt(view.scrollLeft), to = tAt(view.scrollLeft + view.clientWidth);
  const steps = [0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];
  const labels = Math.max(2, view.clientWidth / 90);
  const step = steps.find(step => (to - from) / step <= labels) || 36000;
  const ticks = [];
  for (let t = Math.ceil(from / step) * step; t < to; t += step) {
    const span = Object.assign(document.createElement("span"), {textContent: clock(t)});
    span.style.left = `${100 * (t - film.begin) / seconds}%`;
    if (xOf(t) < track.clientWidth - 40) ticks.push(span);
  }
  $(".axis").replaceChildren(...ticks);
  const seen = shots.slice(lastUpTo(shots, from, shot => shot.start), lastUpTo(shots, to, shot => shot.start) + 1);
  const thumbs = $(".thumbs");
  thumbs.hidden = !film.keys || zoom < 1.5 || seen.length > 150;
  if (!thumbs.hidden) thumbs.replaceChildren(...seen.map(slice));
}

// A shot of the strip: its key-frame, as often as it has room for.
function slice(shot) {
  const scale = $(".strip").clientHeight / film.thumb[1], width = film.thumb[0] * scale;
  const left = xOf(shot.start), room = xOf(shot.end) - left;
  const box = document.createElement("i"), thumb = $(".thumb", shot.row);
  box.style.cssText = `left:${left}px;width:${room}px`;
  const [x, y] = thumb.style.backgroundPosition.split(" ").map(parseFloat);
  const first = Math.max(0, Math.floor((view.scrollLeft - left) / width));
  const last = Math.min(Math.max(1, Math.floor(room / width)), first + Math.ceil(view.clientWidth / width) + 1);
  box.style.paddingLeft = `${first * width}px`;
  for (let k = first; k < last; k++) {
    const piece = document.createElement("b");
    piece.style.cssText = `width:${width}px;background-image:${thumb.style.backgroundImage};` +
      `background-position:${x * scale}px ${y * scale}px;background-size:${film.sheet[0] * scale}px auto`;
    box.append(piece);
  }
  return box;
}

let painting = 0;
const paintSoon = () => { cancelAnimationFrame(painting); painting = requestAnimationFrame(paint); };
view.addEventListener("scroll", paintSoon);
addEventListener("resize", paintSoon);
view.addEventListener("wheel", event => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  setZoom(zoom * (event.deltaY < 0 ? 1.5 : 1 / 1.5), tAt(event.clientX - track.getBoundingClientRect().left));
}, {passive: false});

const pointed = event => tAt(event.clientX - track.getBoundingClientRect().left);
track.addEventListener("click", event => {
  event.preventDefault();
  const scene = event.target.closest(".scenes a");
  if (scene) goTo(scene.getAttribute("href").slice(1)); else seek(pointed(event));
  place();
});
track.addEventListener("pointerdown", event => {
  if (event.pointerType === "touch" || event.target.closest(".scenes")) return;
  const move = event => seek(pointed(event));
  addEventListener("pointermove", move);
  addEventListener("pointerup", () => removeEventListener("pointermove", move), {once: true});
});
track.addEventListener("pointermove", event => {
  const shot = shotAt(pointed(event));
  track.title = `shot ${shot.n}: ${clock(shot.start)} to ${clock(shot.end)}`;
});
track.addEventListener("dragstart", event => event.preventDefault());

// ---- the list of shots

const form = $(".filters"), bodies = $$("table tbody");
let sorted = [];  // blocks of rows, when the list is sorted
const places = bodies.map(body => [body, [...body.children]]);
const number = name => form[name] ? parseFloat(form[name].value.replace(",", ".")) : NaN;

function matches(shot) {
  const bounds = [[shot.length, number("longer"), number("shorter")], [shot.camera, number("camera"), NaN],
    [shot.own, number("own"), NaN], [shot.size, number("scene"), NaN]];
  const text = form.text.value.trim().toLowerCase();
  const inside = bounds.every(([value, low, high]) => !(value < low) && !(value > high));
  const named = /^\d+$/.test(text) ? String(shot.n) === text : shot.text.includes(text);
  return inside && (!text || named);
}

function list() {
  const key = form.sort.value, sign = form.down.checked ? -1 : 1;
  for (const shot of shots) shot.row.hidden = !matches(shot);
  listed = shots.filter(shot => !shot.row.hidden);
  if (sorted.length) places.forEach(([body, rows]) => body.replaceChildren(...rows));
  sorted.forEach(body => body.remove());
  sorted = [];
  if (key) listed.sort((a, b) => sign * (a[key] - b[key]) || a.n - b.n);
  for (let at = 0; key && at < listed.length; at += 50) sorted.push(block(listed.slice(at, at + 50)));
  $("table").append(...sorted);
  for (const body of bodies) {
    const rows = $$("tr.shot:not([hidden])", body).length;
    body.hidden = !rows;
    body.style.setProperty("--rows", rows);
  }
  $(".find output").textContent = listed.length === shots.length ? "" : `(${listed.length} of ${shots.length})`;
}

// Rows that the browser lays out together when they come into view.
function block(some) {
  const body = document.createElement("tbody");
  body.style.setProperty("--rows", some.length);
  body.append(...some.map(shot => shot.row));
  return body;
}

function save() {
  const rows = listed.map(s => [s.n, s.scene, codeAt(s.start), codeAt(s.end), s.start, s.end, s.first, s.stop, s.kind, s.camera, s.own]);
  const head = "shot,scene,timecode_in,timecode_out,start,end,start_frame,end_frame,transition,camera,own";
  const text = [head, ...rows.map(row => row.map(value => value ?? "").join(","))].join("\n") + "\n";
  const file = link(URL.createObjectURL(new Blob([text], {type: "text/csv"})));
  file.download = `${film.name} shots.csv`;
  file.click();
}

form.addEventListener("input", list);
form.addEventListener("reset", () => setTimeout(list));
form.addEventListener("submit", event => event.preventDefault());
$("table").addEventListener("click", event => {
  const row = event.target.closest("tr");
  if (!row || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (row.matches(".shot")) seek(shots.find(shot => shot.row === row).start);
  else if (row.parentNode.id) goTo(row.parentNode.id);
  place();
});

// ---- moving about

// The shot before or after the current one in the list.
function step(by) {
  let at = listed.indexOf(current);
  if (at < 0) {
    const later = listed.findIndex(shot => shot.start > now);
    at = (later < 0 ? listed.length : later) - (by > 0 ? 1 : 0);
  }
  const shot = listed[Math.min(Math.max(at + by, 0), listed.length - 1)];
  if (shot) seek(shot.start);
}

function stepScene(by) {
  const scene = (current.scene ?? 0) + by;
  const shot = shots.find(shot => shot.scene === Math.max(scene, shots[0].scene));
  if (shot) seek(shot.start);
}

function stepFrame(by) {
  video.pause();
  seek(timeOf(Math.min(Math.max(frameAt(now) + by, shots[0].first), lastFrame)));
}

function goTo(id) {
  const element = document.getElementById(id);
  const shot = shots.find(shot => shot.row === element || (element && id.startsWith("scene") && `scene${shot.scene}` === id));
  if (shot) seek(shot.start);
}

const place = () => history.replaceState(null, "", `#shot${current.n}`);

const actions = {
  play: () => video.paused ? video.play().catch(() => {}) : video.pause(),
  sound: () => { video.muted = !video.muted; },
  full: () => document.fullscreenElement ? document.exitFullscreen() : video.requestFullscreen(),
  back: () => stepFrame(-1),
  forward: () => stepFrame(1),
  previous: () => step(-1),
  next: () => step(1),
  in: () => setZoom(zoom * 2),
  out: () => setZoom(zoom / 2),
  help: () => $("dialog").showModal(),
  save,
};
document.addEventListener("click", event => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  actions[button.dataset.do]();
  if (current) place();
});

const keys = {
  " ": actions.play, "k": actions.play,
  "ArrowLeft": event => stepFrame(event.shiftKey ? -10 : -1),
  "ArrowRight": event => stepFrame(event.shiftKey ? 10 : 1),
  "ArrowUp": event => event.shiftKey ? stepScene(-1) : step(-1),
  "ArrowDown": event => event.shiftKey ? stepScene(1) : step(1),
  "Home": () => seek(film.begin), "End": () => seek(film.end),
  "+": actions.in, "=": actions.in, "-": actions.out, "0": () => setZoom(1),
  "l": () => $("#loop").click(), "m": actions.sound, "f": actions.full,
  "g": () => $("#goto").focus(),
  "/": () => { openTab(tabs[0]); $(".find").open = true; form.text.focus(); },
  "?": actions.help,
};
document.addEventListener("keydown", event => {
  const typing = event.target.closest("input:not([type=checkbox]), select, textarea, dialog");
  if (event.key === "Escape" && typing) typing.blur?.();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && event.target.closest("button, a, summary, input")) return;
  const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  event.stopPropagation();
  action(event);
  if (current) place();
}, true);

$("#goto").addEventListener("keydown", event => {
  if (event.key !== "Enter") return;
  const t = readTime(event.target.value), wrong = !(t <= film.end);
  event.target.setAttribute("aria-invalid", wrong);
  if (wrong) return;
  seek(timeOf(frameAt(t)));
  place();
  event.target.blur();
});

// ---- tabs

const tabs = $$(".log .tab");
function openTab(chosen) {
  tabs.forEach((tab, i) => {
    tab.hidden = tab !== chosen;
    $$(".tabs button")[i].setAttribute("aria-pressed", tab === chosen);
  });
}
$(".tabs").append(...tabs.map(tab => {
  const button = Object.assign(document.createElement("button"), {textContent: $("h2", tab)?.textContent ?? "More"});
  button.addEventListener("click", () => openTab(tab));
  return button;
}));

document.documentElement.classList.add("scripted");
$$("[hidden]:not(.missing):not(.thumbs)").forEach(element => element.hidden = false);
video.controls = false;
$$(".strip a").forEach(a => a.remove());  // the script knows where the shots are
if (innerWidth <= 700) $(".find").open = false;
openTab(tabs[0]);
list();
paint();
goTo(location.hash.slice(1));
if (!current) show(now);
addEventListener("hashchange", () => goTo(location.hash.slice(1)));
