import { defineConfig } from "vite";
import { viteSingleFile } from "vite-plugin-singlefile";

// One file without a hash, date or map in it, so that equal sources give equal bytes.
export default defineConfig({
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  plugins: [viteSingleFile({ removeViteModuleLoader: true })],
  build: { outDir: "dist", emptyOutDir: true, target: "es2022", modulePreload: false, reportCompressedSize: false },
});
