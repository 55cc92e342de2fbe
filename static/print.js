// A page for paper: it is always light, and one button prints it.
(() => {
  document.documentElement.classList.add("js");
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-print]")) window.print();
  });
})();
