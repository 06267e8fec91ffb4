"""Train: data, stages, distillation and domain transfer. torch and transformers live here alone, and load when used."""
