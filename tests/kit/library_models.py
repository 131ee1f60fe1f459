"""Models of other people's libraries, small and with random weights, in the form that `benchmarks.zoo` reads."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch_geometric.data import Data
from torch_geometric.nn import GCN, GCNConv, SAGEConv
from x_transformers import Decoder, TransformerWrapper

WORDS = 99
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
GPT = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
REG = {}


def reg(name, batchable=True):
    def keep(build):
        REG[name] = {"lib": name.partition("/")[0], "build": build, "batchable": batchable}
        return build

    return keep


def words(length=12):
    return torch.randint(3, WORDS, (2, length))


def padded(**more):
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, -4:] = 0
    return {"input_ids": words(), "attention_mask": mask, **more}


@reg("transformers/bert, with a padding mask and the loss inside")
def bert():
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT))
    return model, (), padded(labels=torch.tensor([0, 1]))


@reg("transformers/gpt2, with tied embeddings and a cache in the output")
def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT)), (), padded(labels=words())


@reg("transformers/llama, with rotary tables for all layers and checkpointed layers")
def llama():
    config = transformers.LlamaConfig(**TEXT, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = transformers.LlamaForCausalLM(config)
    model.gradient_checkpointing_enable()
    return model, (), padded(labels=words())


@reg("transformers/qwen2 with a mixture of experts")
def experts():
    config = transformers.Qwen2MoeConfig(
        **TEXT,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        pad_token_id=0,
    )
    return transformers.Qwen2MoeForCausalLM(config), (), padded(labels=words())


@reg("transformers/t5, encoder and decoder")
def t5():
    config = transformers.T5Config(
        vocab_size=WORDS, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config), (), padded(labels=words(7))


@reg("transformers/vit")
def vit():
    sizes = {k: v for k, v in TEXT.items() if k not in ("vocab_size", "max_position_embeddings")}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=32, patch_size=8))
    return model, (), {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.tensor([0, 1])}


@reg("transformers/wav2vec2, whose masks are numpy's")
def wav2vec2():
    config = transformers.Wav2Vec2Config(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(32, 32),
        conv_stride=(4, 4),
        conv_kernel=(8, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        mask_time_length=2,
    )
    return transformers.Wav2Vec2ForCTC(config), (), {"input_values": torch.randn(2, 1000), "labels": words(5)}


@reg("torch_geometric/gcn", batchable=False)
def gcn():
    edges = torch.randint(0, 20, (2, 60))
    return GCN(16, 32, 3, 4, dropout=0.2, norm="batch_norm"), (torch.randn(20, 16), edges), {}


class OfData(torch.nn.Module):
    """Takes an object that torch does not know."""

    def __init__(self):
        super().__init__()
        self.one, self.two = GCNConv(16, 32), SAGEConv(32, 4)

    def forward(self, data):
        return self.two(self.one(data.x, data.edge_index).relu(), data.edge_index)


@reg("torch_geometric/an object as input", batchable=False)
def data():
    return OfData(), (Data(x=torch.randn(20, 16), edge_index=torch.randint(0, 20, (2, 60))),), {}


@reg("x-transformers/decoder")
def decoder():
    layers = Decoder(dim=32, depth=3, heads=4, rotary_pos_emb=True)
    return TransformerWrapper(num_tokens=WORDS, max_seq_len=64, attn_layers=layers), (words(),), {}
