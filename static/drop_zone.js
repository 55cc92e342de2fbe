// A file that is dropped takes the place of one that is chosen; sending it stays a press of the button.
(() => {
  const zoneOf = (event) => (event.target instanceof Element ? event.target.closest("[data-drop]") : null);

  function light(zone) {
    for (const one of document.querySelectorAll("[data-drop]")) one.classList.toggle("drop-zone-over", one === zone);
  }

  document.addEventListener("dragover", (event) => {
    if (!document.querySelector("[data-drop]") || !event.dataTransfer.types.includes("Files")) return;
    // Also beside the zone, where the browser would leave the page to show the file.
    event.preventDefault();
    const zone = zoneOf(event);
    event.dataTransfer.dropEffect = zone ? "copy" : "none";
    light(zone);
  });

  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) light(null);
  });

  document.addEventListener("drop", (event) => {
    const zone = zoneOf(event);
    if (!zone) return;
    event.preventDefault();
    light(null);
    const files = event.dataTransfer.files;
    zone.querySelector("[data-several]").hidden = files.length < 2;
    if (files.length !== 1) return;
    const input = zone.querySelector("input[type=file]");
    input.files = files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    zone.closest("form").querySelector("button[type=submit]").focus();
  });
})();
