"use strict";
// The plate of a tracked shot with its points and a test object over it, and its curves.
// Without this script the page is a film, curves and a table.

const $ = (query, from = document) => from.querySelector(query);
const $$ = (query, from = document) => [...from.querySelectorAll(query)];
const shot = JSON.parse($("#shot").textContent);
const video = $("video"), plate = $(".plate"), canvas = $(".plate canvas"), pen = canvas.getContext("2d");
const [width, height] = shot.size, last = shot.frames - 1;
const unpack = (text, Kind) => new Kind(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
const cameras = unpack(shot.cameras, Float64Array);  // 16 a frame: focal lengths, centre, three rows of the pose
const points = unpack(shot.points, Float32Array), lines = unpack(shot.lines, Float32Array);
const lengths = unpack(shot.lengths, Uint16Array);   // of each track, in observations
const frameOf = unpack(shot.frame, Uint16Array), shares = unpack(shot.xy, Uint16Array);  // of each observation
const names = {solved: "solved", rotation_only: "turns on the spot", static: "does not move", filled: "interpolated",
  missing: "no camera"};
const TRAIL = 10, NEAR = 1e-4;  // frames; share of a unit before the camera
let now = 0;        // the frame that is drawn
let wanted = null;  // the frame that the player is on its way to
let sought = null;  // the frame of its last seek
const followers = [];  // called with each frame that is drawn

// ---- observations

const trackOf = new Uint32Array(frameOf.length), seenIn = Array.from({length: shot.frames}, () => []);
for (let track = 0, i = 0; track < lengths.length; track++)
  for (let k = 0; k < lengths[track]; k++, i++) {
    trackOf[i] = track;
    seenIn[frameOf[i]].push(i);
  }
const seenAt = i => [shares[2 * i] / 65535 * width, shares[2 * i + 1] / 65535 * height];

// ---- cameras

const posed = n => !Number.isNaN(cameras[16 * n + 4]);

// A point of the world in the frame of a camera.
function toCamera(n, x, y, z) {
  const at = 16 * n + 4;
  return [0, 4, 8].map(row => cameras[at + row] * x + cameras[at + row + 1] * y + cameras[at + row + 2] * z +
    cameras[at + row + 3]);
}

const toPixel = (n, [x, y, z]) =>
  [cameras[16 * n] * x / z + cameras[16 * n + 2], cameras[16 * n + 1] * y / z + cameras[16 * n + 3]];

// The pixels of both ends of line k of the test object; null if it is behind the camera. What is behind is cut off.
function edge(n, k) {
  let a = toCamera(n, ...lines.subarray(6 * k, 6 * k + 3)), b = toCamera(n, ...lines.subarray(6 * k + 3, 6 * k + 6));
  if (a[2] < b[2]) [a, b] = [b, a];
  if (a[2] <= NEAR) return null;
  if (b[2] < NEAR) {
    const share = (a[2] - NEAR) / (a[2] - b[2]);
    b = a.map((value, axis) => value + share * (b[axis] - value));
  }
  return [toPixel(n, a), toPixel(n, b)];
}

// How far point and observation i are apart, in pixels; NaN where it cannot be said.
function errorOf(i) {
  const n = frameOf[i], at = 3 * trackOf[i], [x, y] = seenAt(i);
  const place = toCamera(n, points[at], points[at + 1], points[at + 2]);
  if (!(place[2] > 0)) return NaN;
  const [u, v] = toPixel(n, place);
  return Math.hypot(u - x, v - y);
}

// ---- colours of errors: blue, yellow, red

const ramp = [[86, 180, 233], [240, 228, 66], [213, 94, 0]];
function colourOf(error) {
  if (Number.isNaN(error)) return "#999";
  const share = 2 * Math.min(error / shot.worst, 1), part = Math.min(Math.floor(share), 1), rest = share - part;
  return `rgb(${ramp[part].map((value, c) => Math.round(value + rest * (ramp[part + 1][c] - value))).join(" ")})`;
}
const colours = Array.from(frameOf, (_, i) => colourOf(errorOf(i)));

// ---- drawing

function draw(n) {
  const across = canvas.width / width, down = canvas.height / height, size = canvas.width / plate.clientWidth;
  const to = ([x, y]) => [x * across, y * down];
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (video.readyState >= 2) pen.drawImage(video, 0, 0, canvas.width, canvas.height);
  if ($("#object").checked && posed(n)) drawObject(n, to, size);
  if ($("#trails").checked) drawTrails(n, to, size);
  if ($("#points").checked) drawPoints(n, to, size);
}

function drawObject(n, to, size) {
  pen.beginPath();
  for (let k = 0; k < lines.length / 6; k++) {
    const ends = edge(n, k);
    if (!ends) continue;
    pen.moveTo(...to(ends[0]));
    pen.lineTo(...to(ends[1]));
  }
  for (const [colour, wide] of [["#000a", 3], ["#ff4fc3", 1.2]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = wide * size;
    pen.stroke();
  }
}

function drawTrails(n, to, size) {
  pen.lineWidth = size;
  for (const i of seenIn[n]) {
    pen.strokeStyle = colours[i];
    pen.beginPath();
    pen.moveTo(...to(seenAt(i)));
    for (let j = i - 1; j >= 0 && trackOf[j] === trackOf[i] && frameOf[j] >= n - TRAIL; j--) pen.lineTo(...to(seenAt(j)));
    pen.stroke();
  }
}

function drawPoints(n, to, size) {
  pen.strokeStyle = "#000";
  pen.lineWidth = 0.8 * size;
  for (const i of seenIn[n]) {
    pen.fillStyle = colours[i];
    pen.beginPath();
    pen.arc(...to(seenAt(i)), 2.8 * size, 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
  }
}

// ---- one frame everywhere

const numberOf = n => shot.start + n;
const known = value => value === null || value === undefined ? "–" : String(value);

function show(n) {
  now = n;
  draw(n);
  const [code, seconds, frame] = $(".times").children;
  code.textContent = shot.codes[n];
  seconds.textContent = `${(numberOf(n) / shot.rate).toFixed(3)} s`;
  frame.textContent = `frame ${numberOf(n)}`;
  $$(".head").forEach(head => head.style.left = `${100 * (n + 0.5) / shot.frames}%`);
  $$("[data-of]").forEach(value => value.textContent = known(shot.values[value.dataset.of][n]));
  const message = $(".plate .message"), status = shot.status[n];
  message.hidden = status === "solved" || status === shot.status[0] && shot.status.every(s => s === status);
  message.textContent = names[status] ?? status;
  plate.dataset.frame = n;
  followers.forEach(follow => follow(n));
}

const clamp = n => Math.min(Math.max(n, 0), last);
const frameAt = t => clamp(Math.floor(t * shot.rate + 0.01));

// The player goes to the middle of a frame; while it is on its way, later wishes wait for it.
function seek(n) {
  wanted = clamp(n);
  if (!video.readyState) show(wanted);  // the player follows once the film has arrived
  else if (!video.seeking) go();
}
function go() {
  sought = wanted;
  video.currentTime = (wanted + 0.5) / shot.rate;
}
video.addEventListener("seeked", () => {
  if (wanted !== null && wanted !== sought) return go();
  wanted = null;
  show(frameAt(video.currentTime));
});
function presented(_, frame) {
  if (!video.seeking && wanted === null) show(frameAt(frame.mediaTime));
  video.requestVideoFrameCallback(presented);
}
function polled() {  // browsers that do not tell when a frame is shown
  if (!video.paused && !video.seeking) show(frameAt(video.currentTime));
  requestAnimationFrame(polled);
}
if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(presented); else requestAnimationFrame(polled);
video.addEventListener("loadedmetadata", () => { if (wanted !== null) go(); });
video.addEventListener("loadeddata", () => { if (wanted === null) show(frameAt(video.currentTime)); });
["play", "pause"].forEach(change => video.addEventListener(change, () => {
  $(".transport").classList.toggle("playing", !video.paused);
  $(".times").ariaLive = video.paused ? "polite" : "off";  // nobody can hear every frame
}));
video.addEventListener("error", gone);
function gone() {
  if ($(".stage .notes")) return;  // it may be noticed twice
  const note = Object.assign(document.createElement("p"), {className: "notes"});
  note.textContent = "The plate, plate.mp4, is not beside this page, or this browser cannot play it. " +
    "Points and test object are drawn without it.";
  $(".stage").prepend(note);
}

// As many pixels as the screen has.
function fit() {
  canvas.width = Math.max(1, Math.round(plate.clientWidth * devicePixelRatio));
  canvas.height = Math.max(1, Math.round(plate.clientHeight * devicePixelRatio));
  draw(now);
}

// ---- moving about

function step(by) {
  video.pause();
  seek((wanted ?? now) + by);
}
const toggle = id => { const box = $(id); box.checked = !box.checked; box.dispatchEvent(new Event("change")); };
const actions = {
  play: () => video.paused ? video.play().catch(() => {}) : video.pause(),
  back: () => step(-1),
  forward: () => step(1),
  begin: () => seek(0),
  end: () => step(last),
  full: () => document.fullscreenElement ? document.exitFullscreen() : $(".stage").requestFullscreen(),
  help: () => $("dialog").showModal(),
};
document.addEventListener("click", event => {
  const button = event.target.closest("[data-do]");
  if (button) actions[button.dataset.do]?.();
});
canvas.addEventListener("click", actions.play);
$("#speed").addEventListener("change", event => { video.playbackRate = Number(event.target.value); });
$("#loop").addEventListener("change", event => { video.loop = event.target.checked; });
["#points", "#trails", "#object"].forEach(id => $(id).addEventListener("change", () => draw(now)));

const keys = {
  " ": actions.play, "k": actions.play,
  "ArrowLeft": event => step(event.shiftKey ? -10 : -1),
  "ArrowRight": event => step(event.shiftKey ? 10 : 1),
  "Home": actions.begin, "End": actions.end,
  "p": () => toggle("#points"), "t": () => toggle("#trails"), "o": () => toggle("#object"),
  "l": () => toggle("#loop"), "f": actions.full, "?": actions.help,
  "g": () => $("#goto").focus(),
};
document.addEventListener("keydown", event => {
  const typing = event.target.closest("input:not([type=checkbox]), select, textarea, dialog");
  if (event.key === "Escape" && typing) typing.blur?.();
  if (typing || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && event.target.closest("button, a, summary, input")) return;
  const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action(event);
});
$("#goto").addEventListener("keydown", event => {
  if (event.key !== "Enter") return;
  const n = Math.round(Number(event.target.value) - shot.start);
  const wrong = !/^\s*\d+\s*$/.test(event.target.value) || n !== clamp(n);
  event.target.setAttribute("aria-invalid", wrong);
  if (wrong) return;
  video.pause();
  seek(n);
  event.target.blur();
});
$$(".box").forEach(box => {
  const pointed = event => {
    const inside = box.getBoundingClientRect();
    seek(Math.floor((event.clientX - inside.left) / inside.width * shot.frames));
  };
  box.addEventListener("pointerdown", event => {
    pointed(event);
    if (event.pointerType === "touch") return;
    addEventListener("pointermove", pointed);
    addEventListener("pointerup", () => removeEventListener("pointermove", pointed), {once: true});
  });
});

document.documentElement.classList.add("scripted");
$$("[hidden]:not(.message):not(.world):not(.views):not(.turning)").forEach(element => element.hidden = false);
video.controls = false;
video.loop = true;
new ResizeObserver(fit).observe(plate);
fit();
show(0);
if (video.error || video.networkState === HTMLMediaElement.NETWORK_NO_SOURCE) gone();
