// esbuild gathers styles that modules import.
declare module "*.css";
