// The viewer of a radiograph: zoom, moving, window and level, invert, and a class activation map over it.
// The window is previewed on the pixels that are here and then fetched, computed from the fine values of the file.
(() => {
  const WAIT_MS = 200;
  const STEP = 1.25;
  const MOST = 16;
  // A picture of this many pixels is all that the server sends at first; beyond, zooming asks for the full size.
  const REDUCED = 2048;

  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  function viewerOf(root) {
    const find = (selector) => root.querySelector(selector);
    const stage = find("[data-stage]");
    if (!stage) return null;
    const [width, height] = [Number(root.dataset.width), Number(root.dataset.height)];
    const svg = stage.querySelector("svg");
    const layers = find("[data-layers]");
    const grey = find("[data-grey]");
    const heat = find("[data-heat]");
    const controls = find("[data-controls]");
    const { center: level, width: range, map: classes } = controls.elements;
    const start = { center: 50, width: 100 };
    const view = { scale: 1, x: 0, y: 0, inverted: controls.elements.invert.checked, windowing: false };
    const wanted = { center: Number(level.value), width: Number(range.value) };
    const shown = { ...wanted, inverted: view.inverted, full: false };
    let lastMap = classes?.value || classes?.options[1]?.value;
    let timer;

    function press(name, on) {
      find(`[data-do="${name}"]`)?.setAttribute("aria-pressed", String(on));
    }

    // -- Where

    function place() {
      view.scale = clamp(view.scale, 1, MOST);
      view.x = clamp(view.x, width * (1 - view.scale), 0);
      view.y = clamp(view.y, height * (1 - view.scale), 0);
      layers.setAttribute("transform", `translate(${view.x} ${view.y}) scale(${view.scale})`);
      stage.classList.toggle("stage-holds", view.scale > 1 || view.windowing);
      say();
      if (!shown.full && Math.max(width, height) > REDUCED && view.scale * svg.clientWidth > REDUCED) later();
    }

    function zoom(factor, at = { x: width / 2, y: height / 2 }) {
      const scale = clamp(view.scale * factor, 1, MOST);
      view.x = at.x - ((at.x - view.x) * scale) / view.scale;
      view.y = at.y - ((at.y - view.y) * scale) / view.scale;
      view.scale = scale;
      place();
    }

    // Pixels of the screen to pixels of the picture.
    const unit = () => 1 / (svg.getScreenCTM()?.a || 1);

    function pointOf(event) {
      return new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    }

    function move(right, down) {
      view.x += right;
      view.y += down;
      place();
    }

    // -- Grey values

    function say() {
      const parts = [`${Math.round(view.scale * 100)} %`, `level ${wanted.center.toFixed(1)}`, `window ${wanted.width.toFixed(1)}`];
      if (view.inverted) parts.push("inverted");
      if (view.windowing) parts.push("arrows and dragging change the window");
      find("[data-state]").textContent = parts.join(" · ");
    }

    // What is here was windowed already: first back, then forward. Outside that window nothing is known until it is fetched.
    function preview() {
      let slope = shown.width / wanted.width;
      let intercept = (shown.center - shown.width / 2 - wanted.center) / wanted.width + 0.5;
      if (shown.inverted) [slope, intercept] = [-slope, intercept + slope];
      if (view.inverted) [slope, intercept] = [-slope, 1 - intercept];
      const same = Math.abs(slope - 1) < 1e-6 && Math.abs(intercept) < 1e-6;
      for (const channel of svg.querySelectorAll("feComponentTransfer > *")) {
        channel.setAttribute("slope", slope);
        channel.setAttribute("intercept", intercept);
      }
      if (same) grey.removeAttribute("filter");
      else grey.setAttribute("filter", "url(#stage-window)");
      say();
    }

    function fetchPicture() {
      if (!root.dataset.picture) return;
      const full = shown.full || (Math.max(width, height) > REDUCED && view.scale * svg.clientWidth > REDUCED);
      const asked = { ...wanted, inverted: false, full };
      const query = new URLSearchParams({ center: asked.center, width: asked.width });
      if (full) query.set("full", "1");
      const next = grey.firstElementChild.cloneNode();
      next.addEventListener("load", () => {
        // A later one may have been asked for meanwhile.
        if (next !== grey.lastElementChild) return;
        grey.replaceChildren(next);
        next.removeAttribute("opacity");
        Object.assign(shown, asked);
        preview();
      });
      next.addEventListener("error", () => {
        next.remove();
        find("[data-failed]").hidden = false;
      });
      next.setAttribute("opacity", "0");
      next.setAttribute("href", `${root.dataset.picture}?${query}`);
      grey.append(next);
    }

    function later() {
      clearTimeout(timer);
      timer = setTimeout(fetchPicture, WAIT_MS);
    }

    function setWindow(center, breadth) {
      wanted.center = clamp(Math.round(center * 10) / 10, -100, 200);
      wanted.width = clamp(Math.round(breadth * 10) / 10, 0.1, 400);
      level.value = wanted.center;
      range.value = wanted.width;
      preview();
      later();
    }

    // -- The map

    function showMap(name) {
      if (!heat) return;
      if (name) {
        const query = new URLSearchParams({ class: name });
        if ("ofInput" in root.dataset) query.set("of", "input");
        heat.setAttribute("href", `${root.dataset.map}?${query}`);
        lastMap = name;
      }
      heat.toggleAttribute("data-off", !name);
      classes.value = name;
      press("map", Boolean(name));
    }

    // -- What buttons and keys do

    const actions = {
      in: () => zoom(STEP),
      out: () => zoom(1 / STEP),
      reset() {
        Object.assign(view, { scale: 1, x: 0, y: 0, inverted: false, windowing: false });
        press("invert", false);
        press("window", false);
        setWindow(start.center, start.width);
        place();
      },
      invert() {
        view.inverted = !view.inverted;
        press("invert", view.inverted);
        preview();
      },
      window() {
        view.windowing = !view.windowing;
        press("window", view.windowing);
        place();
      },
      map: () => showMap(classes?.value ? "" : lastMap),
    };

    const arrows = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

    // Arrows scroll the page unless the picture has the focus.
    function arrow(key) {
      if (!(key in arrows) || !stage.contains(document.activeElement)) return false;
      const [right, down] = arrows[key];
      if (view.windowing) {
        setWindow(wanted.center + 2 * down, wanted.width - 4 * right);
        return true;
      }
      if (view.scale === 1) return false;
      move((right * width) / 12, (down * height) / 12);
      return true;
    }

    root.addEventListener("click", (event) => {
      const button = event.target.closest("[data-do]");
      if (button) actions[button.dataset.do]();
    });
    controls.addEventListener("submit", (event) => event.preventDefault());
    controls.addEventListener("input", (event) => {
      if (event.target === classes) showMap(classes.value);
      else if ("opacity" in event.target.dataset) heat.setAttribute("opacity", event.target.value / 100);
      else if (level.validity.valid && range.validity.valid && level.value && range.value) {
        Object.assign(wanted, { center: Number(level.value), width: Number(range.value) });
        preview();
        later();
      }
    });
    stage.addEventListener("wheel", (event) => {
      // Without the key the wheel scrolls the page; a pinch on a touchpad comes with it.
      if (!event.ctrlKey) return;
      event.preventDefault();
      zoom(event.deltaY < 0 ? STEP : 1 / STEP, pointOf(event));
    }, { passive: false });
    stage.addEventListener("dblclick", (event) => zoom(2, pointOf(event)));
    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !(view.windowing || view.scale > 1)) return;
      stage.setPointerCapture(event.pointerId);
      const moved = (now) => {
        if (view.windowing) setWindow(wanted.center - now.movementY / 5, wanted.width + now.movementX / 2.5);
        else move(now.movementX * unit(), now.movementY * unit());
      };
      stage.addEventListener("pointermove", moved);
      const end = () => stage.removeEventListener("pointermove", moved);
      stage.addEventListener("pointerup", end, { once: true });
      stage.addEventListener("pointercancel", end, { once: true });
    });
    const first = grey.firstElementChild;
    first.addEventListener("error", () => { find("[data-failed]").hidden = false; });
    heat?.addEventListener("error", () => showMap(""));
    place();
    return { actions, arrow };
  }

  const viewers = new WeakMap();

  function current() {
    const root = document.querySelector("[data-viewer]");
    if (!root) return null;
    if (!viewers.has(root)) viewers.set(root, viewerOf(root));
    return viewers.get(root);
  }

  document.addEventListener("DOMContentLoaded", current);
  document.addEventListener("htmx:afterSettle", current);
  document.addEventListener("viewerkey", (event) => {
    const viewer = current();
    const { action, key } = event.detail;
    if (!viewer) return;
    if (action) viewer.actions[action]();
    else if (!viewer.arrow(key)) return;
    event.preventDefault();
  });
})();
