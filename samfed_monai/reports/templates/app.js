(() => {
  const zone = document.getElementById("zone"), files = document.getElementById("files");
  const state = document.getElementById("state"), result = document.getElementById("result");
  const here = location.pathname, pause = () => new Promise(done => setTimeout(done, 400));
  let busy = false;
  const say = (text, wrong = false) => { state.textContent = text; state.classList.toggle("warn", wrong); };
  const random = () => [...crypto.getRandomValues(new Uint8Array(8))].map(byte => byte.toString(16).padStart(2, "0")).join("");
  async function ask(address, options) {
    const answer = await fetch(address, options);
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  }
  // Files of folders that were dropped: their names have the folders' in them, hidden ones are left out.
  async function within(entry, before = "") {
    if (entry.name.startsWith(".")) return [];
    if (entry.isFile) return [{name: before + entry.name, file: await new Promise((done, fail) => entry.file(done, fail))}];
    const reader = entry.createReader(), found = [];
    for (let some; (some = await new Promise((done, fail) => reader.readEntries(done, fail))).length;) {
      for (const one of some) found.push(...await within(one, `${before}${entry.name}-`));
    }
    return found;
  }
  async function segment(chosen) {
    if (busy) return;
    busy = files.disabled = true;
    const key = random();
    try {
      const given = await chosen;
      if (!given.length) return;
      result.replaceChildren();
      for (const [place, {name, file}] of given.entries()) {
        say(`Reading ${place + 1} of ${given.length}: ${name}`);
        await ask(`${here}${key}/${encodeURIComponent(name)}`, {method: "PUT", body: file});
      }
      await ask(here + key, {method: "POST"});
      let found = {state: "waiting"};
      const words = {waiting: "Waiting", queued: "Waiting for masks of an earlier drop", working: "Looking for masks …"};
      while (found.state in words) {
        say(words[found.state]);
        await pause();
        found = await ask(here + key);
      }
      if (found.state === "refused") throw new Error(found.html);
      say("");
      result.innerHTML = found.html;
      for (const link of result.querySelectorAll(".offered a")) link.href = `${here}${key}/${encodeURIComponent(link.getAttribute("href"))}`;
      document.getElementById("found").focus();
    } catch (error) {
      say(error instanceof TypeError ? "The program does not answer: has it ended? Its terminal says why." : error.message, true);
    } finally {
      busy = files.disabled = false;
      files.value = "";
    }
  }
  files.addEventListener("change", () => segment([...files.files].map(file => ({name: file.name, file}))));
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(name, event => {
      event.preventDefault();
      event.dataTransfer.dropEffect = busy ? "none" : "copy";
      zone.classList.toggle("over", !busy && (name === "dragenter" || name === "dragover"));
      if (name !== "drop") return;
      const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry()).filter(entry => entry);
      segment(Promise.all(entries.map(entry => within(entry))).then(found => found.flat()));
    });
  }
})();
