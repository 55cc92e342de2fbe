// When another configuration is chosen the options come anew; groups that were open stay open.
(() => {
  let open = [];

  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.target.id !== "run-options") return;
    open = [...event.detail.target.querySelectorAll("details[open]")].map((group) => group.id);
  });

  document.addEventListener("htmx:afterSettle", () => {
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    open = [];
  });
})();
