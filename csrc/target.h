// Some headers are compiled several times into one module, once for each instruction set. What they
// define lives in a namespace of its own for each, so that the linker cannot take a function compiled
// for a newer processor where an older one is running.
#pragma once

#ifndef DTAG_TARGET
#define DTAG_TARGET portable
#endif
