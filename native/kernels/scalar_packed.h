// scalar_packed.h: the linears over packed weights in plain C++, for scalar.cc's record of kernels.
#ifndef EYESPOT_KERNELS_SCALAR_PACKED_H_
#define EYESPOT_KERNELS_SCALAR_PACKED_H_

#include "kernels/generic.h"

namespace eyespot::scalar {

void linear_w8a16(const LinearA16Args& a);
void linear_w4a16(const LinearA16Args& a);
void linear_w8a8(const LinearA8Args& a);
void linear_w4a8(const LinearA8Args& a);

}  // namespace eyespot::scalar

#endif
