/* Another unit: the same types again, one of its own by a name that is taken,
 * and the definition of what the first only declares. */
#include "list.h"
struct elsewhere { int here; struct list_head list; };
struct packed { char other[99]; };
struct elsewhere place;
struct packed mine;
