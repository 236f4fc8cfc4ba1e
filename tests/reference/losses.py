"""The losses in NumPy float64, from the papers and the released code, with gradients by hand."""

import numpy as np


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def surrogate(name, z):
    """Value and derivative of l(z), the loss of calling z positive."""
    if name == "sigmoid":
        p = sigmoid(-z)
        return p, -p * (1 - p)
    return np.logaddexp(0, -z), -sigmoid(-z)


def parts(z, labelled, name):
    """Mean losses (P as positive, P as negative, U as negative) and their gradients with respect to z."""
    value, slope = surrogate(name, z)
    value_neg, slope_neg = surrogate(name, -z)
    n_p, n_u = max(labelled.sum(), 1), max((~labelled).sum(), 1)
    p, u = labelled / n_p, ~labelled / n_u
    return (
        (value @ p, slope * p),
        (value_neg @ p, -slope_neg * p),
        (value_neg @ u, -slope_neg * u),
    )


def upu(z, labelled, prior, name):
    (a, da), (b, db), (c, dc) = parts(z, labelled, name)
    return prior * a + c - prior * b, prior * da + dc - prior * db


def non_negative(positive, d_positive, negative, d_negative, beta, gamma):
    if negative < -beta:
        return positive - beta, -gamma * d_negative
    return positive + negative, d_positive + d_negative


def nnpu(z, labelled, prior, beta, gamma, name):
    (a, da), (b, db), (c, dc) = parts(z, labelled, name)
    return non_negative(prior * a, prior * da, c - prior * b, dc - prior * db, beta, gamma)


def balanced_nnpu(z, labelled, prior, beta, gamma, name):
    (a, da), (b, db), (c, dc) = parts(z, labelled, name)
    scale = 0.5 / (1 - prior)
    return non_negative(0.5 * a, 0.5 * da, scale * (c - prior * b), scale * (dc - prior * db), beta, gamma)


def labelled_vs_unlabelled(z, labelled):
    (a, da), _, (c, dc) = parts(z, labelled, "logistic")
    return 0.5 * (a + c), 0.5 * (da + dc)


def vpu(z, labelled):
    p = sigmoid(z)
    mean = p[~labelled].mean()
    value = np.log(mean) - np.log(p[labelled]).mean()
    grad = np.where(labelled, -(1 - p) / labelled.sum(), p * (1 - p) / ((~labelled).sum() * mean))
    return value, grad


def dist_pu(z, labelled, prior):
    p = sigmoid(z)
    a, b = p[labelled].mean() - 1, p[~labelled].mean() - prior
    slope = p * (1 - p)
    grad = np.where(labelled, 2 * prior * np.sign(a) * slope / labelled.sum(), np.sign(b) * slope / (~labelled).sum())
    return 2 * prior * abs(a) + abs(b), grad


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(student, teacher, temperature):
    """T^2 KL per example, and its gradient with respect to the student's logits."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1), temperature * (q - p)


def noise_adapted_nll(student, teacher_class, adaptation, diagonal):
    """Per example, with the confusion matrix written out row by row."""
    confusion = np.zeros_like(adaptation)
    for k in range(len(confusion)):
        others = np.arange(len(confusion)) != k
        confusion[k, others] = (1 - diagonal) * softmax(adaptation[k, others])
        confusion[k, k] = diagonal
    return -np.log((softmax(student) @ confusion)[np.arange(len(student)), teacher_class])
