// test_packed.h: the checks of the linears over packed weights, for test.cc's walk over kernels.inc.
#ifndef EYESPOT_KERNELS_TEST_PACKED_H_
#define EYESPOT_KERNELS_TEST_PACKED_H_

#include <string>

#include "kernels/generic.h"

namespace eyespot {

void check(const std::string& name, const std::string& format, void (*kernel)(const LinearA16Args&),
           void (*scalar)(const LinearA16Args&));
void check(const std::string& name, const std::string& format, void (*kernel)(const LinearA8Args&),
           void (*scalar)(const LinearA8Args&));

}  // namespace eyespot

#endif
