// scripts/build.mjs inlines the file, packed.
declare module "*.wasm" {
  /** Unpacks it, anew each time. */
  const bytes: () => Promise<Uint8Array<ArrayBuffer>>;
  export default bytes;
}
