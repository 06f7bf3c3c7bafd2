// Holds docs/demo/ddpm.mjs to the golden vectors: node golden.mjs GOLDEN TABLES SAMPLERS
// TABLES: the bytes of both tables of the noise. SAMPLERS: an object of the JSON of each solver of GOLDEN, by name.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { portableNoise, readSampler, threefry, trajectory } from "../../docs/demo/ddpm.mjs";

/** A float as C99 writes it, in hexadecimal; any other value as it is. */
function read(key, value) {
  const found = /^(-?)(?:(inf)|0x(\d)\.?([\da-f]*)p([-+]\d+))$/.exec(value);
  if (!found || typeof value !== "string") return value;
  const [, sign, infinite, whole, digits, power] = found;
  const size = infinite ? Infinity : Number(`0x${whole}${digits}`) * 2 ** (power - 4 * digits.length);
  return sign ? -size : size;
}

const [golden, bytes, samplers] = process.argv.slice(2).map((path) => readFileSync(path));
const { noise, solvers } = JSON.parse(golden, read);
const texts = JSON.parse(samplers);
const tables = new Uint8Array(bytes).buffer;

for (const { seed, id, step, words, values } of noise.values) {
  const key = threefry(Number(BigInt(seed) & 0xffffffffn), Number(BigInt(seed) >> 32n), id, 0);
  const found = [0, 1, 2].flatMap((i) => threefry(...key, i, step)).map((word) => word >>> 0);
  assert.deepEqual(found, words);
  assert.deepEqual([...portableNoise(BigInt(seed), tables, id)(step, 5)], values);
}

const draw = portableNoise(0n, tables);
const wide = (step, size) => Float64Array.from(draw(step, size));
const oracle = (x, { alpha, sigma }) =>
  x.map((value) => 0.5 + (alpha / 4 / (alpha ** 2 / 4 + sigma ** 2)) * (value - alpha / 2));

for (const [name, { levels, sample, ...tables }] of Object.entries(solvers)) {
  const sampler = readSampler(texts[name]);
  assert.deepEqual([...sampler.rows.map((row) => row.level), sampler.end], levels);
  for (const [part, table] of Object.entries(tables)) {
    assert.deepEqual(sampler.rows.map((row) => row[part]), table);
  }
  let x;
  for await (const step of trajectory(oracle, sampler, wide(0, 3), wide)) ({ x } = step);
  const error = Math.max(...sample.map((value, i) => Math.abs(value - x[i])));
  assert.ok(error <= 2 ** -40, `${name} draws ${x}, but ${sample} is golden`);
}

assert.throws(() => readSampler('{"version": 2}'), /has version 2/);
console.log(`${noise.values.length} keys of noise and ${Object.keys(solvers).length} solvers agree`);
