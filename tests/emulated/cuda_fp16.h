// Kernels convert halves by their own codecs here.
#pragma once
