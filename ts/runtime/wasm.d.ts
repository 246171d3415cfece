// scripts/build.mjs inlines the file, packed.
declare module "*.wasm" {
  const inlined: {
    /** The file's last bytes, which tell its build. */
    readonly buildId: readonly number[];
    /** Unpacks it, anew each time. */
    unpack(): Promise<Uint8Array<ArrayBuffer>>;
  };
  export default inlined;
}
