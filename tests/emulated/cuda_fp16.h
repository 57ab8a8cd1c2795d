// Empty: emulated kernels convert float16 with the codec.
#pragma once
