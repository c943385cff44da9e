// Command syscalls tells what changes in a guest's table of system calls, and
// in the code that newer kernels go by instead.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"vmscope"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

func main() {
	g, err := vmscope.Open(context.Background(), os.Args[1])
	for was := make(map[mem.VA]uint64); err == nil; time.Sleep(time.Second) {
		err = g.View(context.Background(), func(v *vmscope.View) error {
			table, err := v.LookupSymbol("sys_call_table")
			code, _ := v.LookupSymbol("x64_sys_call") // older kernels have none
			for _, s := range []linux.Symbol{table, code} {
				for at := s.Addr; at < s.Addr+mem.VA(s.Size); at += 8 {
					now, err := v.Mem.Uint64(at)
					if err != nil {
						return err
					}
					if old, known := was[at]; known && now != old {
						to, _, _ := v.Nearest(mem.VA(now)) // the function's name
						fmt.Printf("%s[%d]: %#x %v, was %#x\n", s.Name, (at-s.Addr)/8, now, to, old)
					}
					was[at] = now
				}
			}
			return err
		})
	}
	log.Fatal(err)
}
