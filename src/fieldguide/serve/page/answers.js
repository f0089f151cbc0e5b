// Answers of this server, one photo a request.

const WAITS = [500, 1000, 2000, 4000, 8000]; // milliseconds, while it is busy

export const AT_ONCE = 4;
export const PRIVACY = "Photos go to this server alone, which keeps none.";

export async function load() {
  const answer = await fetch("model");
  if (!answer.ok) throw new Error(`The model cannot be loaded (${answer.status}).`);
  return answer.json();
}

// Why a file is of a class: what `POST /explain` gives, which only a run can.
export async function explain(file, label) {
  const headers = { "Content-Type": "application/octet-stream" };
  const place = `explain?class=${encodeURIComponent(label)}`;
  const answer = await fetch(place, { method: "POST", body: file, headers });
  const told = await answer.json();
  if (!answer.ok) throw new Error(`${told.error}${answer.status === 503 ? ": ask again later" : ""}`);
  return told;
}

// The answer for a file: what `POST /predict` gives. Throws an Error with a sentence.
export async function look(file) {
  for (const wait of [...WAITS, null]) {
    let answer;
    try {
      const headers = { "Content-Type": "application/octet-stream" };
      answer = await fetch("predict", { method: "POST", body: file, headers });
    } catch {
      throw new Error("The server cannot be reached, or the photo is too large for it.");
    }
    if (answer.ok) return answer.json();
    if (answer.status !== 503 || wait === null) {
      const told = await answer.json().catch(() => ({}));
      throw new Error(told.error || `The server refused it (${answer.status}).`);
    }
    await new Promise((done) => setTimeout(done, wait));
  }
}
