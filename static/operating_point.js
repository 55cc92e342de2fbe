// The slider of the operating point: shows what a threshold does, from the figures in the page and without a request.
(() => {
  const source = document.getElementById("slider-data");
  const slider = document.getElementById("slider");
  if (!source || !slider) return;
  const { thresholds, parts } = JSON.parse(source.textContent);
  const prevalence = document.getElementById("id_prevalence");
  const threshold = document.getElementById("id_threshold");
  const save = document.getElementById("save-form");
  const percent = (share) => (share === null ? "not available" : `${(100 * share).toFixed(1)}\u00a0%`);
  const interval = ([value, low, high]) => (value === null ? "not available" : `${percent(value)} (${percent(low)} to ${percent(high)})`);
  const share = (part, whole) => (whole > 0 ? part / whole : null);

  // Bayes' theorem: what an answer is worth where this share of those who are examined have the finding.
  function predictive([sensitivity], [specificity], prevalent) {
    if (sensitivity === null || specificity === null || !(prevalent >= 0 && prevalent <= 1)) return { ppv: null, npv: null };
    const found = sensitivity * prevalent;
    const alarmed = (1 - specificity) * (1 - prevalent);
    const cleared = specificity * (1 - prevalent);
    const missed = (1 - sensitivity) * prevalent;
    return { ppv: share(found, found + alarmed), npv: share(cleared, cleared + missed) };
  }

  function texts(point, prevalent) {
    const { ppv, npv } = predictive(point.sensitivity, point.specificity, prevalent);
    return {
      sensitivity: interval(point.sensitivity),
      specificity: interval(point.specificity),
      ppv: percent(ppv),
      npv: percent(npv),
      hits: point.hits,
      missed: point.positives - point.hits,
      alarms: point.alarms,
      cleared: point.negatives - point.alarms,
    };
  }

  function show() {
    const position = Number(slider.value);
    const prevalent = prevalence.value === "" ? Number.NaN : Number(prevalence.value) / 100;
    for (const [part, points] of Object.entries(parts)) {
      const shown = texts(points[position], prevalent);
      for (const cell of document.querySelectorAll(`[data-part="${part}"]`)) cell.textContent = shown[cell.dataset.figure];
    }
    for (const place of document.querySelectorAll("[data-shown-threshold]")) place.textContent = percent(thresholds[position]);
    const told = Number.isNaN(prevalent) ? "not available" : `${Number(Number(prevalence.value).toPrecision(6))}\u00a0%`;
    document.getElementById("shown-prevalence").textContent = told;
    slider.setAttribute("aria-valuetext", `Threshold ${percent(thresholds[position])}`);
  }

  // A threshold that is not what the criterion finds is one set by hand.
  function setByHand(chosen) {
    save.elements.threshold.value = chosen;
    save.elements.criterion.value = "by hand";
    save.elements.target.value = "";
  }

  function move() {
    const chosen = thresholds[Number(slider.value)];
    threshold.value = chosen;
    if (save) setByHand(chosen);
    show();
  }

  function weigh() {
    if (save) {
      // For another prevalence the lowest cost lies elsewhere; what is saved is what stands here.
      if (save.elements.criterion.value === "cost") setByHand(save.elements.threshold.value);
      save.elements.prevalence.value = prevalence.value;
    }
    show();
  }

  slider.addEventListener("input", move);
  prevalence.addEventListener("input", weigh);
  show();
})();
