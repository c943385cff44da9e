// A module that does nothing; see hidden.c.
#include "module.h"

static int up(void) { return 0; }

static void down(void) {}

MODULE(up, down);
