# fastattn._emulated: the CUDA kernels, compiled by the C++ compiler against the emulator, and the
# same bindings that _C has.
file(GLOB emulator_sources CONFIGURE_DEPENDS emulator/*.cpp)

add_library(fastattn_emulator OBJECT ${cuda_kernels} ${hopper_kernels} ${emulator_sources})
set_source_files_properties(${cuda_kernels} ${hopper_kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
target_link_libraries(fastattn_emulator PRIVATE fastattn_options)
target_compile_definitions(fastattn_emulator PRIVATE FASTATTN_EMULATE)
# Every memory access is a call into the emulator: more optimisation costs more time to compile than
# the tests would win.
target_compile_options(fastattn_emulator PRIVATE -O2 -g1)

fastattn_add_module(_emulated
  bindings/emulated.cpp
  ${cuda_bindings}
)
target_compile_definitions(_emulated PRIVATE FASTATTN_EMULATE FASTATTN_HOPPER)
target_link_libraries(_emulated PRIVATE fastattn_emulator)
