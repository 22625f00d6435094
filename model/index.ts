/** The public surface of the models: layers, STDiT, diffusion, samplers, codecs, text encoders and files. */
export { CrossAttention, SelfAttention } from "./attention.js";
export { FinalLayer, type LanguageInput, STDiTBlock } from "./block.js";
export {
  type LoadedModel,
  type ModelContent,
  modelEntries,
  type OpenModelOptions,
  openModel,
  saveModel,
} from "./checkpoint.js";
export { type Codec, type PatchBasis, PCACodec, PixelCodec } from "./codec.js";
export { type LanguageGate, outChannels, STDIT_XL_2, type STDiTConfig, stditConfig } from "./config.js";
export { parameterCount } from "./count.js";
export { ddim, ddimReverse } from "./diffusion/ddim.js";
export { ddpm } from "./diffusion/ddpm.js";
export { dpmSolver } from "./diffusion/dpm.js";
export { Flow } from "./diffusion/flow.js";
export { type GuidanceOptions, type GuidanceParts, guided } from "./diffusion/guidance.js";
export { Iddpm, type IddpmLoss } from "./diffusion/iddpm.js";
export type { Loss, Noised, Objective } from "./diffusion/objective.js";
export { euler, type FlowOptions, heun } from "./diffusion/ode.js";
export type { ScheduleOptions } from "./diffusion/steps.js";
export { Velocity } from "./diffusion/velocity.js";
export { finalLatent, type Predict, type Step } from "./diffusion/walk.js";
export { CaptionEmbedder, posTable1d, posTable2d, TimestepEmbedder, timestepCode, timestepCodes } from "./embed.js";
export type { FolderLocation } from "./files/folder.js";
export { forwardFlops } from "./flops.js";
export {
  type Imported,
  type OpenSoraOptions,
  openOpenSora,
  type SaveOpenSoraOptions,
  saveOpenSora,
} from "./foreign/opensora.js";
export { type ForeignKind, type ForeignOptions, foreignKind } from "./foreign/origin.js";
export { initFromPixArt, type PixArtOptions } from "./foreign/pixart.js";
export { describeImport, type ImportReport, importReport } from "./foreign/report.js";
export {
  describeGrowth,
  type GrowthMode,
  type GrowthOptions,
  type GrowthPlan,
  type GrowthRecord,
  grow,
  grownSource,
  growthPlan,
  newParameters,
  setTrained,
} from "./growth.js";
export * as init from "./init.js";
export { addLanguage, type LanguageOptions, type LanguageRecord } from "./language.js";
export { Conv2d, Conv3dPatch, Embedding, LayerNorm, Linear, type LinearOptions, Mlp, type Patch } from "./layers.js";
export {
  encodeLlamaConfig,
  LLAMA_3_8B,
  type LlamaConfig,
  llamaConfig,
  llamaConfigOf,
  type RopeScaling,
} from "./llama/config.js";
export { LlamaAttention, LlamaLayer, LlamaMlp, RmsNorm } from "./llama/layer.js";
export { Llama, type LlamaInit, LlamaModel } from "./llama/llama.js";
export {
  addLora,
  baseState,
  type LoraConfig,
  type LoraOptions,
  loadBase,
  loraConfig,
  mergeLora,
  removeLora,
  unmergeLora,
} from "./lora.js";
export { type Hook, Module, type ModuleOptions, type TableRow } from "./module.js";
export { loadLora, loraState, saveLora } from "./peft/file.js";
export { isPickle, refusePickle } from "./pickle.js";
export {
  languagePrompts,
  type Pipeline,
  type Progress,
  type SampleRequest,
  type SamplerName,
  sample,
  sampleClips,
  samplersOf,
  videoShape,
} from "./pipeline.js";
export {
  openQuantized,
  type QuantizationError,
  QuantizedLinear,
  type QuantizeForm,
  type QuantizeOptions,
  type QuantizeReport,
  quantizationError,
  quantizationMetadata,
  quantize,
  quantized,
  quantizeLinear,
  saveQuantized,
} from "./quantize.js";
export * from "./safetensors.js";
export {
  type DiffusionTables,
  diffusionTables,
  flowTimes,
  linearBetas,
  type Respacing,
  shiftTime,
} from "./schedule.js";
export { type HostTensor, type LoadOptions, type LoadReport, StateError, type StateSource } from "./state.js";
export { type LanguageCall, STDiT, type STDiTCall, type STDiTInit } from "./stdit.js";
export { encodeT5Config, T5_V1_1_XXL, type T5Config, t5Config, t5ConfigOf } from "./t5/config.js";
export { T5Encoder } from "./t5/t5.js";
export { type BranchEncoder, identifyBranch, languageOf, type OpenBranch, openBranch } from "./text/branch.js";
export { captionEncoderOf, type OpenCaptions, openCaptions } from "./text/captions.js";
export { type ChatMessage, ChatTemplate } from "./text/chat.js";
export { cleanCaption } from "./text/clean.js";
export { EMBEDDED_T5_LENGTH, openEmbeddedT5 } from "./text/embedded.js";
export type { Encoded, Identity, TextEncoder } from "./text/encoder.js";
export { formPrompts, inForm, PROMPT_FORMS, type PromptForm, promptForm } from "./text/form.js";
export { type OpenedLlama, type OpenLlamaOptions, openLanguage, openLlama } from "./text/language.js";
export { type LlamaEncoderOptions, LlamaTextEncoder } from "./text/llama.js";
export { encoderOf } from "./text/open.js";
export { type OpenAIOptions, OpenAIRecaptioner, RecaptionError } from "./text/openai.js";
export { parseScene, type Recaptioner, RuleRecaptioner, type Scene } from "./text/recaption.js";
export {
  type EncoderAssets,
  type EncoderSpec,
  type FoundEncoder,
  findEncoder,
  type OpenEncoder,
  openEncoder,
} from "./text/spec.js";
export { type OpenedT5, type OpenT5Options, openT5, type T5EncoderOptions, T5TextEncoder } from "./text/t5.js";
export { openTokenizer, type SpecialName, specialId, type Tokenizer } from "./text/tokenizer.js";
export { VocabularyEncoder } from "./text/vocabulary.js";
export { WordEncoder, type WordEncoderOptions } from "./text/words.js";
export { VAECodec, type VaeCodecOptions } from "./vae/codec.js";
export { VaeDecoder, VaeEncoder } from "./vae/coders.js";
export { encodeVaeConfig, SD_VAE, type VaeConfig, vaeConfig, vaeConfigOf } from "./vae/config.js";
export { ExternalVae, type ExternalVaeOptions } from "./vae/external.js";
export { type OpenVaeOptions, openVae, saveVae, vaeFingerprint } from "./vae/open.js";
export { AutoencoderKL, klDivergence, type Moments, type VaeParts } from "./vae/vae.js";
export { StateView } from "./view.js";
