/* In both units. */
struct list_head { struct list_head *next, *prev; };
