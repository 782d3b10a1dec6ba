"""The captum side of `attribution.py`: the same VGG16 in torch, in a Python that has captum and scikit-learn.

    python captum_attributions.py net.npz threads

``net.npz`` holds the kernels and biases of the net (shallow to deep, the head last), one image and feature groups.
Every line of the input asks for one thing in JSON, {"method", "evals", "window", "samples", "groups", "places",
"out"};
one line of JSON answers it: wall and CPU seconds of the call. With ``out`` what was found is left in that file.
"""

import json
import sys
import time

import numpy as np
import torch
from captum import attr
from torch import nn

POOL_BEHIND = (2, 4, 7, 10, 13)
#: Gradient methods; what samples is asked for as many samples as our side.
GRADIENTS = {
    "gradient": lambda model, image, _: attr.Saliency(model).attribute(image, 0, abs=False),
    "input_x_gradient": lambda model, image, _: attr.InputXGradient(model).attribute(image, 0),
    "guided_backprop": lambda model, image, _: attr.GuidedBackprop(model).attribute(image, 0),
    "deconvolution": lambda model, image, _: attr.Deconvolution(model).attribute(image, 0),
    "smoothgrad": lambda model, image, n: attr.NoiseTunnel(attr.Saliency(model)).attribute(
        image, nt_samples=n, stdevs=0.15, target=0, abs=False),
    "integrated_gradients": lambda model, image, n: attr.IntegratedGradients(model).attribute(image, 0, 0, n_steps=n),
    "gradient_shap": lambda model, image, n: attr.GradientShap(model).attribute(
        image, torch.zeros_like(image), n_samples=n, target=0),
    "deeplift": lambda model, image, _: attr.DeepLift(model).attribute(image, 0, 0),
    "gradcam": lambda model, image, _: attr.LayerGradCam(model, last_relu(model)).attribute(
        image, 0, relu_attributions=True),
    "guided_gradcam": lambda model, image, _: attr.GuidedGradCam(model, last_relu(model)).attribute(image, 0)}


def last_relu(model):
    return [layer for layer in model if isinstance(layer, nn.ReLU)][-1]


def build(arrays):
    """VGG16, mean over space and a linear head; channels first."""
    stack, n = [], sum(name.startswith("kernel") for name in arrays)
    for i in range(n):
        kernel, bias = arrays[f"kernel{i}"], torch.tensor(arrays[f"bias{i}"])
        if i < n - 1:
            made = nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, padding=1)
            made.weight.data = torch.tensor(np.moveaxis(kernel, (-1, -2), (0, 1)).copy())
            stack += [made, nn.ReLU()] + ([nn.MaxPool2d(2)] if i + 1 in POOL_BEHIND else [])
        else:
            made = nn.Linear(*kernel.shape)
            made.weight.data = torch.tensor(kernel.T.copy())
            stack += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), made]
        made.bias.data = bias
    return nn.Sequential(*stack).eval()


def first(array):
    """Channels first, one image."""
    return torch.tensor(np.moveaxis(array, -1, 0).copy())[None]


def call(model, arrays, ask):
    if ask["method"] in GRADIENTS:
        return GRADIENTS[ask["method"]](model.float(), first(arrays["image"]), ask["samples"])
    image, evals = first(arrays["image"]), ask["evals"]
    if ask["method"] == "covered":  # no captum in it: full passes in float64, the measure of who is exact
        return covered(model.double(), image.double(), ask["places"], ask.get("evals"))
    model.float()
    if ask["method"] == "occlusion":
        sides = (1, ask["window"], ask["window"])
        return attr.Occlusion(model).attribute(image, sides, sides, target=0, perturbations_per_eval=evals)
    method = {"lime": attr.Lime, "kernel_shap": attr.KernelShap, "shapley_sampling": attr.ShapleyValueSampling}
    return method[ask["method"]](model).attribute(image, target=0, feature_mask=first(arrays[ask["groups"]]),
                                                  n_samples=ask["samples"], perturbations_per_eval=evals)


def covered(model, image, places, size):
    """What the score loses while each window is zero."""
    losses = []
    for start in range(0, len(places), size):
        part = places[start:start + size]
        images = image.repeat(len(part), 1, 1, 1)
        for one, (top, bottom, left, right, modality) in zip(images, part):
            one[modality, top:bottom, left:right] = 0
        losses.append(model(image)[0, 0] - model(images)[:, 0])
    return torch.cat(losses)


def main(file, threads):
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    arrays = dict(np.load(file))
    model = build(arrays)
    for line in sys.stdin:
        ask = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.set_grad_enabled(ask["method"] in GRADIENTS):
            found = call(model, arrays, ask)
        answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        if "out" in ask:
            np.save(ask["out"], found.detach().numpy())
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
