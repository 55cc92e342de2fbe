// Single keys on the page of a prediction. They do nothing while somebody writes or chooses, with a modifier, within a
// dialog, or when they were switched off on this device (WCAG 2.1.4).
(() => {
  const VIEWER = { "+": "in", "=": "in", "-": "out", 0: "reset", i: "invert", m: "map", w: "window" };
  const OFF = "keys-off";

  const dialog = () => document.querySelector("[data-keys]");
  const areOn = () => localStorage.getItem(OFF) === null;
  const writes = (target) => target.closest("input, textarea, select, [contenteditable], [role=menu]");

  function open() {
    dialog().querySelector("[data-keys-on]").checked = areOn();
    dialog().showModal();
  }

  // Buttons and links are pressed, fields get the focus.
  function act(target) {
    if (target.matches("select, input")) target.focus();
    else target.click();
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !dialog() || dialog().open || writes(event.target)) return;
    if (!areOn()) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key === "?") {
      open();
    } else if (key in VIEWER || key.startsWith("Arrow")) {
      const detail = { action: VIEWER[key], key };
      const asked = new CustomEvent("viewerkey", { detail, cancelable: true });
      if (document.dispatchEvent(asked)) return;
    } else {
      const target = /^[a-z]$/.test(key) && document.querySelector(`[data-key="${key}"]`);
      // A key that is held down must not give verdict after verdict.
      if (!target || event.repeat) return;
      act(target);
    }
    event.preventDefault();
  });

  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-keys-open]")) open();
  });

  document.addEventListener("change", (event) => {
    if (!event.target.matches("[data-keys-on]")) return;
    if (event.target.checked) localStorage.removeItem(OFF);
    else localStorage.setItem(OFF, "yes");
  });
})();
