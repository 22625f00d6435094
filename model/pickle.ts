export { isPickle, refusePickle } from "./safetensors/pickle.js";
