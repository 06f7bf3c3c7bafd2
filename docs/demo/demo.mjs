// The page: settings in, steps out. What draws is ddpm.mjs and the network, which ONNX Runtime runs.

import { portableNoise, readSampler, trajectory } from "./ddpm.mjs";

const at = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
let about, noise, ort, session, where, busy = true;
export let kept = []; // the steps of the picture that is shown

async function load() {
  say("Loading the network and what runs it, about 25 MB …");
  const adapter = "Suspending" in WebAssembly && (await navigator.gpu?.requestAdapter().catch(() => null));
  const gpu = adapter && !adapter.info?.isFallbackAdapter; // which is slower than WebAssembly
  let model;
  [about, noise, model] = await Promise.all([
    fetched("demo.json").then((response) => response.json()),
    fetched("noise.bin").then((response) => response.arrayBuffer()),
    fetched("model.onnx").then((response) => response.arrayBuffer()),
  ]);
  for (const [provider, name] of [...(gpu ? [["webgpu", "jspi"]] : []), ["wasm", "wasm"]]) {
    try {
      ort = await import(`./onnxruntime/ort.${name}.bundle.min.mjs`);
      ort.env.wasm.numThreads = 1; // more need headers that a plain server does not send
      session = await ort.InferenceSession.create(model, { executionProviders: [provider], logSeverityLevel: 3 });
      await denoiser(0, 2)(new Float32Array(about.size[0] * about.size[1]), { time: 1, alpha: 1, sigma: 0 });
      where = provider === "webgpu" ? "the graphics card (WebGPU)" : "the processor (WebAssembly)";
      return;
    } catch (error) {
      if (provider === "wasm") throw error;
    }
  }
}

async function fetched(name) {
  const response = await fetch(name).catch(() => ({}));
  if (!response.ok) throw new Error(`${name} is missing. Build the page with docs/demo/build.py, and serve that folder.`);
  return response;
}

/** The clipped x_0 that the network, which predicts v, sees in x; with classifier-free guidance, of two rows. */
function denoiser(y, guidance) {
  const classes = guidance === 1 ? [y] : [y, -1];
  const [rows, shape] = [classes.length, [1, ...about.size]];
  return async (x, { time, alpha, sigma }) => {
    const batch = new Float32Array(rows * x.length);
    classes.forEach((_, i) => batch.set(x, i * x.length));
    const { output } = await session.run({
      x: new ort.Tensor("float32", batch, [rows, ...shape]),
      timestep: new ort.Tensor("float32", new Float32Array(rows).fill(Math.max(time - 1, 0)), [rows]),
      y: new ort.Tensor("int64", BigInt64Array.from(classes, BigInt), [rows]),
    });
    const each = output.data.length / rows; // v, and then the v of a learned variance
    return x.map((value, k) => {
      const [x0, other] = classes.map((_, i) => alpha * value - sigma * output.data[i * each + k]);
      return Math.min(1, Math.max(-1, other === undefined ? x0 : other + guidance * (x0 - other)));
    });
  };
}

/** The steps of a picture, each with the x_t and the level that the network was shown. y: the class; seed: a BigInt. */
async function* drawn({ y, seed, solver, steps, guidance }) {
  const [sampler, eps] = [readSampler(about.samplers[solver][steps]), portableNoise(seed, noise)];
  let x = eps(0, about.size[0] * about.size[1]);
  for await (const step of trajectory(denoiser(y, guidance), sampler, x, eps)) {
    yield { ...step, shown: x, level: sampler.rows[step.number - 1].level };
    x = step.x;
  }
}

function settings() {
  const [y, guidance] = [at("class").selectedIndex, Number(at("guidance").value)];
  return { y, seed: BigInt(at("seed").value), solver: at("solver").value, steps: at("steps").value, guidance };
}

function command({ y, seed, solver, steps, guidance }) {
  const name = /^\w+$/.test(about.classes[y]) ? about.classes[y] : `'${about.classes[y]}'`;
  const guided = guidance === 1 ? "" : ` --guidance ${guidance}`;
  return `ddpm-core sample --classes ${name} --seed ${seed} --sampler ${solver} --steps ${steps}${guided} --count 1`;
}

function paint(id, values, label) {
  const [canvas, [height, width]] = [at(id), about.size];
  Object.assign(canvas, { width, height });
  canvas.setAttribute("aria-label", label);
  const pixels = Uint8ClampedArray.from({ length: 4 * values.length }, (_, k) => (k % 4 === 3 ? 255 : (values[k >> 2] + 1) * 127.5));
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
}

const place = ({ logsnr }) => Math.min(1000, Math.max(0, 50 * (logsnr + 10))); // log-SNR from -10 to 10
const tick = (level) => `M${place(level)} 0V12`;

function show(i) {
  const { number, level, shown, x0 } = kept[i];
  const text = `${number} of ${at("step").max}, log-SNR ${level.logsnr.toFixed(2).replace("-", "−")}`;
  paint("x", shown, `x_t at call ${text}`);
  paint("x0", x0, `x_0 that the network sees at call ${text}`);
  at("now").setAttribute("d", tick(level));
  at("step").value = number;
  at("step").setAttribute("aria-valuetext", text);
  at("readout").textContent = text;
}

async function draw(event) {
  if (busy || !at("settings").reportValidity()) return;
  wait(true);
  if (event && innerWidth <= 640) at("stage").scrollIntoView({ behavior: still.matches ? "auto" : "smooth" });
  try {
    const [chosen, began] = [settings(), performance.now()];
    const { rows, end } = readSampler(about.samplers[chosen.solver][chosen.steps]);
    const name = about.classes[chosen.y];
    at("command").textContent = command(chosen);
    at("final").width = at("final").width; // clears it
    at("caption").textContent = "The picture";
    at("ticks").setAttribute("d", [...rows.map(({ level }) => level), end].map(tick).join(""));
    Object.assign(at("step"), { min: 1, max: rows.length, disabled: true });
    say(`Drawing on ${where} …`);
    let paused = 0;
    kept = [];
    for await (const step of drawn(chosen)) {
      kept.push(step);
      if (still.matches) continue;
      show(kept.length - 1);
      const since = performance.now();
      await new Promise((done) => setTimeout(done, Math.min(120, 2400 / rows.length)));
      paused += performance.now() - since;
    }
    const seconds = (performance.now() - began - paused) / 1000;
    show(kept.length - 1);
    paint("final", kept.at(-1).x, `${name}, drawn from seed ${chosen.seed}`);
    at("caption").textContent = `${name}, seed ${chosen.seed}`;
    at("step").disabled = false;
    say(`Drawn: ${name}, seed ${chosen.seed}, ${rows.length} network calls on ${where} in ${seconds.toFixed(1)} s.`);
  } catch (error) {
    say(`The network stopped: ${error.message}`, true);
  }
  wait(false);
}

function wait(on) {
  busy = on;
  for (const id of ["draw", "next"]) at(id).setAttribute("aria-disabled", on);
}

function say(text, error = false) {
  at("status").textContent = text;
  at("status").classList.toggle("error", error);
}

function fill(id, names, chosen) {
  at(id).replaceChildren(...names.map((name) => new Option(name, name, name === chosen, name === chosen)));
}

at("settings").addEventListener("submit", (event) => (event.preventDefault(), draw(event)));
at("next").addEventListener("click", (event) => {
  if (busy || !at("settings").reportValidity()) return;
  at("seed").value = BigInt(at("seed").value) + 1n;
  draw(event);
});
at("guidance").addEventListener("input", () => (at("scale").textContent = at("guidance").value));
at("step").addEventListener("input", () => show(at("step").value - 1));
at("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(at("command").textContent);
    say("Copied.");
  } catch {
    getSelection().selectAllChildren(at("command"));
    say("Selected: copy it with the keyboard.");
  }
});

try {
  await load();
  fill("class", about.classes, "Sneaker");
  fill("solver", Object.keys(about.samplers), "dpmpp_2m");
  fill("steps", Object.keys(Object.values(about.samplers)[0]), "20");
  wait(false);
  draw();
} catch (error) {
  say(`This page cannot draw: ${error.message}`, true);
}
