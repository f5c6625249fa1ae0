# SPDX-License-Identifier: Apache-2.0
"""Video-LLaMA (https://huggingface.co/papers/2306.02858) for transformers. Importing it registers the Auto classes."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoVideoProcessor,
)

from .branches import load_branch, save_branch
from .captioning import caption_files
from .chat import VideoLlamaChat
from .configuration_video_llama import (
    ImageBindAudioConfig,
    ImageBindConfig,
    ImageBindVisionConfig,
    VideoLlamaAudioConfig,
    VideoLlamaAudioQFormerConfig,
    VideoLlamaConfig,
    VideoLlamaQFormerConfig,
    VideoLlamaVideoQFormerConfig,
    VideoLlamaVisionConfig,
)
from .exceptions import (
    CheckpointError,
    ContextLengthError,
    ConversationError,
    DecodeTimeoutError,
    FeatureCacheError,
    MediaError,
    MediaNotFoundError,
    NoAudioError,
    PlaceholderError,
    SessionError,
    SharingError,
    StreamError,
    TimeRangeError,
    TrainingDataError,
    VideoLlamaError,
)
from .feature_extraction_video_llama import VideoLlamaFeatureExtractor
from .image_processing_video_llama import VideoLlamaImageProcessor
from .live import LiveDescription, LiveFrame, LiveSound, describe_live
from .modeling_imagebind import ImageBindAudioModel, ImageBindModel, ImageBindPreTrainedModel, ImageBindVisionModel
from .modeling_video_llama import (
    VideoLlamaForConditionalGeneration,
    VideoLlamaModel,
    VideoLlamaPreTrainedModel,
    VideoLlamaQFormerModel,
    VideoLlamaVisionModel,
)
from .processing_video_llama import VideoLlamaProcessor
from .sharing import adapter_card, model_card
from .video_processing_video_llama import VideoLlamaVideoProcessor
from .windows import windows_of


__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ContextLengthError",
    "ConversationError",
    "DecodeTimeoutError",
    "FeatureCacheError",
    "ImageBindAudioConfig",
    "ImageBindAudioModel",
    "ImageBindConfig",
    "ImageBindModel",
    "ImageBindPreTrainedModel",
    "ImageBindVisionConfig",
    "ImageBindVisionModel",
    "LiveDescription",
    "LiveFrame",
    "LiveSound",
    "MediaError",
    "MediaNotFoundError",
    "NoAudioError",
    "PlaceholderError",
    "SessionError",
    "SharingError",
    "StreamError",
    "TimeRangeError",
    "TrainingDataError",
    "VideoLlamaAudioConfig",
    "VideoLlamaAudioQFormerConfig",
    "VideoLlamaChat",
    "VideoLlamaConfig",
    "VideoLlamaError",
    "VideoLlamaFeatureExtractor",
    "VideoLlamaForConditionalGeneration",
    "VideoLlamaImageProcessor",
    "VideoLlamaModel",
    "VideoLlamaPreTrainedModel",
    "VideoLlamaProcessor",
    "VideoLlamaQFormerConfig",
    "VideoLlamaQFormerModel",
    "VideoLlamaVideoProcessor",
    "VideoLlamaVideoQFormerConfig",
    "VideoLlamaVisionConfig",
    "VideoLlamaVisionModel",
    "adapter_card",
    "caption_files",
    "describe_live",
    "load_branch",
    "model_card",
    "save_branch",
    "windows_of",
]

# Each configuration, with the base model that it is of, if it is of one alone
_AUTO_MODELS = {
    VideoLlamaConfig: VideoLlamaModel,
    VideoLlamaVisionConfig: VideoLlamaVisionModel,
    VideoLlamaQFormerConfig: VideoLlamaQFormerModel,
    VideoLlamaVideoQFormerConfig: None,
    VideoLlamaAudioQFormerConfig: None,
    VideoLlamaAudioConfig: None,
    ImageBindConfig: ImageBindModel,
    ImageBindVisionConfig: ImageBindVisionModel,
    ImageBindAudioConfig: ImageBindAudioModel,
}
for _config, _model in _AUTO_MODELS.items():
    AutoConfig.register(_config.model_type, _config)
    if _model is not None:
        AutoModel.register(_config, _model)
for _auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
    _auto_class.register(VideoLlamaConfig, VideoLlamaForConditionalGeneration)
AutoProcessor.register(VideoLlamaConfig, VideoLlamaProcessor)
# PIL's resize is the original's, whichever backend is asked for
_backends = dict.fromkeys(("pil", "torchvision"), VideoLlamaImageProcessor)
AutoImageProcessor.register(VideoLlamaConfig, image_processor_classes=_backends)
AutoVideoProcessor.register(VideoLlamaConfig, VideoLlamaVideoProcessor)
AutoFeatureExtractor.register(VideoLlamaConfig, VideoLlamaFeatureExtractor)

# `save_pretrained` copies the code beside the weights, so that `trust_remote_code=True` needs no installed package
for _config, _model in _AUTO_MODELS.items():
    _config.register_for_auto_class()
    if _model is not None:
        _model.register_for_auto_class("AutoModel")
VideoLlamaForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")
for _processor in (
    VideoLlamaProcessor,
    VideoLlamaImageProcessor,
    VideoLlamaVideoProcessor,
    VideoLlamaFeatureExtractor,
):
    _processor.register_for_auto_class()
