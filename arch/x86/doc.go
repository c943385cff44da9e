// Package x86 walks the page tables of x86 guests, 32 and 64 bit, as the
// processor does: Intel SDM volume 3A, chapter 4 "Paging" (tables 4-1 for the
// modes, 4-14 to 4-20 for the entries); AMD APM volume 2, chapter 5.
//
// The tables were written by the guest: a walk reads at most one entry a level
// and believes nothing else.
package x86
