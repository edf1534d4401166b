// Bundles the viewer into ../static: viewer.js, viewer.css and LICENSES.txt, the notices of what the bundle holds.

import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "..", "static");

const result = await build({
  absWorkingDir: here,
  entryPoints: { viewer: "src/main.ts" },
  bundle: true,
  format: "iife",
  target: ["es2022"],
  charset: "utf8",
  minify: true,
  legalComments: "none",
  metafile: true,
  outdir: out,
  write: false,
  logLevel: "warning",
});

const packages = new Set();
for (const input of Object.keys(result.metafile.inputs)) {
  const found = /(?:^|\/)node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input);
  if (found) packages.add(found[1]);
}

const notices = [];
for (const name of [...packages].sort()) {
  const folder = join(here, "node_modules", name);
  const facts = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
  notices.push(`${name} ${facts.version} (${facts.license})\n\n${(await license(folder, name)).trim()}\n`);
}

await mkdir(out, { recursive: true });
for (const file of result.outputFiles) await replace(file.path, file.contents);
await replace(join(out, "LICENSES.txt"), `viewer.js holds code of:\n\n${notices.join("\n\n")}`);

async function license(folder, name) {
  for (const file of ["LICENSE.txt", "LICENSE", "LICENSE.md"]) {
    try {
      return await readFile(join(folder, file), "utf8");
    } catch (error) {
      if (error.code !== "ENOENT") throw error;
    }
  }
  throw new Error(`package ${name} has no license file, so its code cannot be bundled`);
}

// A build that is cut off leaves the bundle before it whole.
async function replace(path, contents) {
  await writeFile(`${path}.part`, contents);
  await rename(`${path}.part`, path);
}
