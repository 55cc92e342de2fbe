// Light or dark as the system says, unless the user chose otherwise on this device. Runs before the page is drawn.
(() => {
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const systemTheme = () => (system.matches ? "dark" : "light");
  const chosen = () => localStorage.getItem("theme") || systemTheme();

  function apply() {
    root.dataset.bsTheme = chosen();
    for (const button of document.querySelectorAll("[data-theme-toggle]")) {
      button.querySelector("span").textContent = chosen() === "dark" ? "Light theme" : "Dark theme";
    }
    document.dispatchEvent(new Event("themechange"));
  }

  function toggle() {
    const next = chosen() === "dark" ? "light" : "dark";
    // Back at the system's theme the choice is forgotten, so that the page follows the system again.
    if (next === systemTheme()) localStorage.removeItem("theme");
    else localStorage.setItem("theme", next);
    apply();
  }

  root.classList.add("js");
  apply();
  system.addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", apply);
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-theme-toggle]")) toggle();
  });
})();
