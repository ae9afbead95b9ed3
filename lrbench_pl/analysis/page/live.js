"use strict";
(() => {
  const root = document.documentElement;
  const status = document.getElementById("status");
  const key = `lrbench:${location.pathname}`;
  const rows = () => [...document.querySelectorAll("tr[data-group]")];
  const heads = () => [...document.querySelectorAll("table.sorts th")];
  const details = () => [...document.querySelectorAll("details")];
  history.scrollRestoration = "manual";

  const reload = () => {
    const sorted = heads().findIndex((head) => head.hasAttribute("aria-sort"));
    const view = {
      x: scrollX,
      y: scrollY,
      chosen: rows().filter((row) => row.classList.contains("chosen")).map((row) => row.dataset.group),
      sorted: sorted < 0 ? null : [heads()[sorted].textContent, heads()[sorted].getAttribute("aria-sort")],
      open: details().map((each) => each.open),
    };
    try { sessionStorage.setItem(key, JSON.stringify(view)); } catch { /* without storage the page starts at its top */ }
    location.reload();
  };

  const restore = () => {
    let view = null;
    try {
      view = JSON.parse(sessionStorage.getItem(key));
      sessionStorage.removeItem(key);
    } catch { /* nothing is stored */ }
    if (!view) return;
    const head = view.sorted && heads().find((each) => each.textContent === view.sorted[0]);
    for (let clicks = 0; head && clicks < 2 && head.getAttribute("aria-sort") !== view.sorted[1]; clicks += 1) head.querySelector("button").click();
    for (const row of rows()) if (view.chosen.includes(row.dataset.group)) row.click();
    details().forEach((each, number) => { each.open = Boolean(view.open[number]); });
    scrollTo(view.x, view.y);
  };

  if (root.dataset.drawn) restore();
  else new MutationObserver((_, observer) => { observer.disconnect(); restore(); }).observe(root, { attributeFilter: ["data-drawn"] });

  let frame = null;
  addEventListener("message", (event) => {
    if (frame === null || event.source !== frame.contentWindow || event.data === null || event.data.written === undefined) return;
    frame.remove();
    frame = null;
    if (event.data.written !== status.dataset.written) reload();
  });
  setInterval(() => {
    if (frame !== null) frame.remove(); // it has not answered
    frame = document.createElement("iframe"); // a new one each time, which adds nothing to the history of the tab
    frame.hidden = true;
    frame.src = `${location.href.split(/[?#]/)[0]}?look=${Date.now()}`;
    document.body.append(frame);
  }, 1000 * Math.max(1, Number(status.dataset.every)));
})();
