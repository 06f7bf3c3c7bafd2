// What a port of ddpm-core needs to draw: noise, samplers as JSON, and the loop. docs/golden.md has the formats.

const ROTATIONS = [13, 15, 26, 6, 17, 29, 16, 24];

/** Threefry-2x32 with 20 rounds (Salmon et al. 2011): the key k0, k1, the counter x0, x1 -> two words, as int32. */
export function threefry(k0, k1, x0, x1) {
  const keys = [k0 | 0, k1 | 0, k0 ^ k1 ^ 0x1bd11bda];
  x0 = (x0 + keys[0]) | 0;
  x1 = (x1 + keys[1]) | 0;
  for (let i = 0; i < 20; i++) {
    const r = ROTATIONS[i % 8];
    x0 = (x0 + x1) | 0;
    x1 = ((x1 << r) | (x1 >>> (32 - r))) ^ x0;
    if (i % 4 === 3) {
      const j = (i + 1) / 4;
      x0 = (x0 + keys[j % 3]) | 0;
      x1 = (x1 + keys[(j + 1) % 3] + j) | 0;
    }
  }
  return [x0, x1];
}

/** Standard normal noise, (step, size) -> Float32Array. seed: a BigInt; tables: the bytes of both; id: of the sample. */
export function portableNoise(seed, tables, id = 0) {
  const [first, second] = [new Float32Array(tables, 0, 65536), new Float32Array(tables, 4 * 65536, 65536)];
  const key = threefry(Number(seed & 0xffffffffn), Number(seed >> 32n), id, 0);
  return (step, size) => {
    const words = Array.from({ length: Math.ceil(size / 2) }, (_, i) => threefry(...key, i, step)).flat();
    return Float32Array.from(words.slice(0, size), (word) => first[word & 0xffff] + second[word >>> 16]);
  };
}

/** The rows {level, read, point, anchor} and the last level of a sampler, as `Sampler.to_json` writes it. */
export function readSampler(text) {
  const about = JSON.parse(text);
  if (about.version !== 1) throw new Error(`a sampler's JSON has version ${about.version}, but only 1 is known`);
  const fields = Object.entries(about.levels);
  const level = (i) => Object.fromEntries(fields.map(([name, values]) => [name, Number(values[i])]));
  const rows = about.read.map((read, i) => ({ level: level(i), read, point: about.point[i], anchor: about.anchor[i] }));
  return { name: about.name, rows, end: level(rows.length) };
}

const combine = (like, numbers, arrays) =>
  like.map((_, k) => arrays.reduce((sum, array, i) => sum + numbers[i] * array[k], 0));

/** The state {point, anchor, memory} after a row. y: the output of the denoiser; z: noise, where the row takes any. */
export function advance({ read, point, anchor }, state, y, z) {
  const m0 = combine(y, read, [state.point, y]);
  const terms = [state.point, state.anchor, m0, ...state.memory, ...(z ? [z] : [])];
  const memory = [m0, ...state.memory].slice(0, state.memory.length);
  return { point: combine(y, point, terms), anchor: combine(y, anchor, terms), memory };
}

/** The steps {number, level, x, x0} of a sample. denoise: (x, level) -> x0, or a promise of it; x: noise, an array of floats. */
export async function* trajectory(denoise, { rows, end }, x, noise) {
  const nothing = x.map(() => 0);
  let state = { point: x, anchor: x, memory: Array(rows[0].point.length - 4).fill(nothing) };
  for (const [i, row] of rows.entries()) {
    const x0 = await denoise(state.point, row.level);
    const takes = row.point.at(-1) !== 0 || row.anchor.at(-1) !== 0;
    state = advance(row, state, x0, takes ? noise(i + 1, x.length) : undefined);
    yield { number: i + 1, level: rows[i + 1]?.level ?? end, x: state.point, x0 };
  }
}
