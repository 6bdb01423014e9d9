import { defineConfig } from "vitest/config";

export default defineConfig({
  build: {
    outDir: "../trimtab/dashboards/static",
    emptyOutDir: true,
    // The page is served under `default-src 'self'`: data: URIs and injected scripts would be refused.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    sourcemap: false,
    target: "es2022",
  },
  server: { proxy: { "/api": "http://127.0.0.1:8270" } },
  test: { include: ["tests/**/*.test.ts"], css: true },
});
