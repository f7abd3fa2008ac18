(() => {
  const number = (card, name) => Number(card.dataset[name]);
  const byName = (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, {numeric: true});
  const orders = {
    dice: (a, b) => number(a, "dice") - number(b, "dice") || byName(a, b),
    trust: (a, b) => number(b, "dice") - number(a, "dice") || byName(a, b),
    large: (a, b) => number(b, "area") - number(a, "area") || byName(a, b),
    small: (a, b) => number(a, "area") - number(b, "area") || byName(a, b),
    name: byName,
  };
  function apply() {
    const form = document.getElementById("controls"), grid = document.getElementById("looks");
    const wanted = Object.fromEntries(new FormData(form));
    const cards = [...grid.children].sort(orders[wanted.sort]);
    let shown = 0;
    for (const card of cards) {
      const fits = (!wanted.flag || card.dataset.flags.split("|").includes(wanted.flag))
        && (!wanted.doubtful || card.classList.contains("doubtful"))
        && card.dataset.name.toLowerCase().includes(wanted.name.trim().toLowerCase());
      card.hidden = !fits;
      shown += fits;
    }
    grid.append(...cards);
    grid.classList.toggle("bare", !wanted.outlines);
    form.querySelector("output").textContent = `${shown} of ${cards.length} shown`;
  }
  for (const kind of ["input", "change"]) {
    document.addEventListener(kind, event => { if (event.target.closest("#controls")) apply(); });
  }
  document.addEventListener("submit", event => { if (event.target.id === "controls") event.preventDefault(); });
  window.addEventListener("pageshow", () => { if (document.getElementById("controls")) apply(); });
})();
