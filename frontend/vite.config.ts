// Two files come of this: the page, and Vega apart from it, which only charts need.
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

export default defineConfig(({ mode }) => ({
  plugins: [svelte()],
  build: {
    outDir: "../src/educe/explore/assets",
    emptyOutDir: mode !== "vega",
    target: "es2022",
    chunkSizeWarningLimit: 1500,
    lib: {
      entry: mode === "vega" ? "src/vega.ts" : "src/main.ts",
      name: "educe",
      formats: ["iife"],
      fileName: () => (mode === "vega" ? "vega.js" : "app.js"),
      cssFileName: "app",
    },
  },
  define: { "process.env.NODE_ENV": JSON.stringify("production") },
}));
