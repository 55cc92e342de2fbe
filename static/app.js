// What htmx leaves to the page: announcements, focus, the log's scroll position, and answers that are not fragments.
(() => {
  const announcer = document.getElementById("announcer");
  const scrolls = new Map();
  let announced = "";

  function say(text) {
    if (text === announced) return;
    announced = text;
    announcer.textContent = text;
  }

  const atEnd = (box) => box.scrollHeight - box.scrollTop - box.clientHeight < 4;
  const toEnd = (box) => { box.scrollTop = box.scrollHeight; };

  document.querySelectorAll("[data-tail]").forEach(toEnd);
  announced = document.querySelector("[data-announce]")?.dataset.announce ?? "";

  document.addEventListener("htmx:beforeSwap", (event) => {
    // The session ended: a poll was led to the login page. Reload, so that the login brings the user back here.
    const login = document.body.dataset.loginUrl;
    if (login && new URL(event.detail.xhr.responseURL, location.href).pathname === login) {
      event.detail.shouldSwap = false;
      location.reload();
      return;
    }
    for (const box of document.querySelectorAll("[data-tail]")) scrolls.set(box.id, atEnd(box) ? null : box.scrollTop);
  });

  document.addEventListener("htmx:afterSwap", (event) => {
    for (const box of document.querySelectorAll("[data-tail]")) {
      const top = scrolls.get(box.id);
      if (top === null || top === undefined) toEnd(box);
      else box.scrollTop = top;
    }
    const text = document.querySelector("[data-announce]")?.dataset.announce;
    if (text) say(text);
    event.detail.target.querySelector("[data-focus]")?.focus();
  });

  // A poll that fails says nothing: the next one comes by itself.
  const polls = (event) => Boolean(event.detail.requestConfig?.headers?.["X-Poll"]);
  const showUnanswered = (shown) => document.getElementById("unanswered")?.toggleAttribute("hidden", !shown);

  document.addEventListener("htmx:beforeRequest", (event) => polls(event) || showUnanswered(false));
  document.addEventListener("htmx:sendError", (event) => showUnanswered(!polls(event)));
  document.addEventListener("htmx:responseError", (event) => showUnanswered(event.detail.xhr.status >= 500 && !polls(event)));

  document.addEventListener("focusin", (event) => {
    if (event.target.matches("[data-select]")) event.target.select();
  });
})();
