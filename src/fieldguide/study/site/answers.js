// Answers of the model beside this page: photos never leave the device.

export const AT_ONCE = 1;
export const PRIVACY = "Photos stay on this device: the model runs in the browser, also offline once it is loaded.";

const worker = new Worker("worker.js", { type: "module" });
const asked = new Map(); // what waits for an answer, by number
let number = 0;

worker.addEventListener("message", ({ data }) => {
  const { resolve, reject } = asked.get(data.number);
  asked.delete(data.number);
  if (data.error) reject(new Error(data.error));
  else resolve(data.found);
});
worker.addEventListener("error", () => {
  for (const { reject } of asked.values()) reject(new Error("The model cannot be run in this browser."));
  asked.clear();
});

function ask(message) {
  number += 1;
  worker.postMessage({ ...message, number });
  return new Promise((resolve, reject) => asked.set(number, { resolve, reject }));
}

// What the server's `GET /model` says, once the model is ready.
export function load() {
  navigator.serviceWorker?.register("offline.js").catch(() => {}); // offline needs https or localhost
  return ask({});
}

// Only a server with the run explains.
export const explain = null;

// The answer for a file: what the server's `POST /predict` gives. Throws an Error with a sentence.
export const look = (file) => ask({ file });
