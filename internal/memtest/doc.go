// Package memtest builds guest memory and page tables by hand, for tests.
package memtest
