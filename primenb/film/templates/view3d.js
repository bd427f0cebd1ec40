"use strict";
// Points, path and the camera of the current frame in 3-D, drawn by three.js where the browser can.

(() => {
  const world = $(".world"), message = $(".message", world);
  const able = () => { try { return document.createElement("canvas").getContext("webgl"); } catch { return null; } };
  world.hidden = false;
  const cause = !window.THREE ? "The library three.min.js is not in the folder above this page." :
    !able() ? "This browser does not draw in 3-D: WebGL is switched off or absent." :
    !shot.status.some((_, n) => posed(n)) ? "No frame has a camera." : "";
  if (cause) {
    message.textContent = cause + ($(".still img") ? " The still image shows the path." : "");
    message.hidden = false;
    world.style.height = "auto";
    message.style.position = "static";
    world.removeAttribute("tabindex");
    return;
  }
  $(".still").hidden = true;
  $$(".views, .turning").forEach(element => element.hidden = false);

  // ---- the track in a world whose y axis points up
  const turn = new THREE.Matrix4().set(...shot.upright[0], 0, ...shot.upright[1], 0, ...shot.upright[2], 0, 0, 0, 0, 1);
  const pose = n => {  // world from camera; null where there is none
    if (!posed(n)) return null;
    const m = [...cameras.subarray(16 * n + 4, 16 * n + 16)];
    return new THREE.Matrix4().set(...m, 0, 0, 0, 1).invert().premultiply(turn);
  };
  const poses = shot.status.map((_, n) => pose(n));
  const centres = poses.map(m => m && new THREE.Vector3().setFromMatrixPosition(m));
  const path = centres.filter(Boolean);
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const quantile = (values, share) => [...values].sort((a, b) => a - b)[Math.round(share * (values.length - 1))];

  const renderer = new THREE.WebGLRenderer({antialias: true});
  const scene = new THREE.Scene(), eye = new THREE.PerspectiveCamera(45, 1, 0.01, 1000);
  renderer.domElement.setAttribute("aria-hidden", "true");
  world.prepend(renderer.domElement);
  const controls = new THREE.OrbitControls(eye, renderer.domElement);

  // ---- what is drawn
  function cloud(positions, colours, size) {
    const geometry = new THREE.BufferGeometry();
    geometry.setAttribute("position", new THREE.Float32BufferAttribute(positions, 3));
    geometry.setAttribute("color", new THREE.Float32BufferAttribute(colours, 3));
    return new THREE.Points(geometry, new THREE.PointsMaterial({size, sizeAttenuation: false, vertexColors: true}));
  }
  function strokes(positions, colour) {
    const geometry = new THREE.BufferGeometry();
    geometry.setAttribute("position", new THREE.Float32BufferAttribute(positions, 3));
    return new THREE.LineSegments(geometry, new THREE.LineBasicMaterial({color: colour}));
  }
  const upright = values => {
    const out = [];
    for (let k = 0; k + 2 < values.length; k += 3)
      out.push(...new THREE.Vector3(values[k], values[k + 1], values[k + 2]).applyMatrix4(turn).toArray());
    return out;
  };
  const rgb = unpack(shot.colours, Uint8Array), finite = [], shades = [];
  for (let k = 0; k < points.length / 3; k++) {
    const place = points.subarray(3 * k, 3 * k + 3);
    if (!place.every(Number.isFinite)) continue;
    finite.push(...upright(place));
    shades.push(...[0, 1, 2].map(c => rgb[3 * k + c] / 255));
  }
  const dpr = Math.min(devicePixelRatio, 2);
  scene.add(cloud(finite, shades, 3 * dpr));
  if (lines.length) scene.add(strokes(upright(lines), css("--object")));
  const kind = {filled: css("--filled"), missing: css("--missing")};
  const marks = centres.flatMap((c, n) => c ? new THREE.Color(kind[shot.status[n]] || css("--solved")).toArray() : []);
  scene.add(cloud(path.flatMap(c => c.toArray()), marks, 4 * dpr));
  const legs = centres.flatMap((c, n) => c && centres[n - 1] ? [...centres[n - 1].toArray(), ...c.toArray()] : []);
  scene.add(strokes(legs, css("--solved")));
  const frustum = strokes(new Array(8 * 2 * 3).fill(0), css("--ink"));
  frustum.frustumCulled = false;
  scene.add(frustum);

  // The pyramid of frame n, as large as can be seen from here.
  function aim(n) {
    frustum.visible = Boolean(poses[n]);
    if (!poses[n]) return;
    const far = 0.12 * eye.position.distanceTo(centres[n]), [fx, fy, cx, cy] = cameras.subarray(16 * n, 16 * n + 4);
    const corner = (x, y) => new THREE.Vector3((x - cx) / fx * far, (y - cy) / fy * far, far).applyMatrix4(poses[n]);
    const corners = [corner(0, 0), corner(width, 0), corner(width, height), corner(0, height)];
    const ends = corners.flatMap((c, k) => [centres[n], c, c, corners[(k + 1) % 4]]);
    frustum.geometry.attributes.position.array.set(ends.flatMap(v => v.toArray()));
    frustum.geometry.attributes.position.needsUpdate = true;
  }

  let waiting = 0;
  function paint() {
    waiting = 0;
    aim(now);
    scene.background = new THREE.Color(css("--panel"));
    frustum.material.color.set(css("--ink"));
    renderer.render(scene, eye);
  }
  const soon = () => { waiting ||= requestAnimationFrame(paint); };
  function fit() {
    const {clientWidth: w, clientHeight: h} = world;
    if (!w || !h) return;
    renderer.setPixelRatio(dpr);
    renderer.setSize(w, h);
    eye.aspect = w / h;
    eye.updateProjectionMatrix();
    paint();
  }

  // ---- where one looks from
  const middle = (from, share) => new THREE.Vector3(...[0, 1, 2].map(c => quantile(from.map(v => v[c]), share)));
  const triples = Array.from({length: finite.length / 3}, (_, k) => finite.slice(3 * k, 3 * k + 3));
  const steps = path.map(c => c.toArray());
  const ahead = new THREE.Vector3();
  for (const m of poses) if (m) ahead.add(new THREE.Vector3().setFromMatrixColumn(m, 2));
  ahead.y = 0;
  if (ahead.length() < 1e-6) ahead.set(0, 0, -1);
  ahead.normalize();
  const around = some => {
    const low = middle(some, 0.05), high = middle(some, 0.95);
    return {target: low.clone().add(high).multiplyScalar(0.5), radius: Math.max(low.distanceTo(high) / 2, 1e-6)};
  };
  const whole = around([...triples, ...steps]), way = around(steps);
  way.radius = Math.max(way.radius, 0.05 * whole.radius);
  function look({target, radius}, from) {
    controls.target.copy(target);
    eye.up.set(0, 1, 0);
    eye.position.copy(target).addScaledVector(from.normalize(), 2.6 * radius / Math.min(1, eye.aspect));
    eye.near = radius / 1000;
    eye.far = 1000 * whole.radius;
    eye.updateProjectionMatrix();
    controls.update();
    soon();
  }
  const behind = () => ahead.clone().multiplyScalar(-1).add(new THREE.Vector3(0.45, 0.6, 0));
  const spot = () => poses[now] || poses.find(Boolean);
  Object.assign(actions, {
    all: () => look(whole, behind()),
    path: () => look(way, behind()),
    above: () => look(whole, new THREE.Vector3(0, 1, 0).addScaledVector(ahead, -0.001)),
    camera: () => {
      const m = spot(), place = new THREE.Vector3().setFromMatrixPosition(m);
      const along = new THREE.Vector3().setFromMatrixColumn(m, 2);
      eye.position.copy(place).addScaledVector(along, -0.02 * whole.radius);
      controls.target.copy(place).addScaledVector(along, whole.radius);
      controls.update();
      soon();
    },
  });

  // ---- turning by keys; the wheel zooms only where one has clicked, so that the page can be scrolled past
  const round = (across, up) => {
    const ball = new THREE.Spherical().setFromVector3(eye.position.clone().sub(controls.target));
    ball.theta += across;
    ball.phi += up;
    ball.makeSafe();
    eye.position.setFromSpherical(ball).add(controls.target);
    controls.update();
  };
  const zoom = by => { eye.position.sub(controls.target).multiplyScalar(by).add(controls.target); controls.update(); };
  const turns = {"ArrowLeft": () => round(-0.1, 0), "ArrowRight": () => round(0.1, 0), "ArrowUp": () => round(0, -0.1),
    "ArrowDown": () => round(0, 0.1), "+": () => zoom(0.85), "=": () => zoom(0.85), "-": () => zoom(1 / 0.85)};
  world.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || !turns[event.key]) return;
    event.preventDefault();
    turns[event.key]();
    soon();
  });
  controls.enableZoom = false;
  renderer.domElement.addEventListener("pointerdown", () => world.focus({preventScroll: true}));
  world.addEventListener("focus", () => { controls.enableZoom = true; });
  world.addEventListener("blur", () => { controls.enableZoom = false; });
  controls.addEventListener("change", soon);
  followers.push(soon);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", soon);
  new ResizeObserver(fit).observe(world);
  fit();
  actions.all();
})();
