// Command processes lists a guest's processes by walking the kernel's own list.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"vmscope"
	"vmscope/ctype"
)

func main() {
	err := vmscope.Look(context.Background(), os.Args[1], func(v *vmscope.View) error {
		init, err := v.Var("init_task")
		if err != nil {
			return err
		}
		head, err := init.Field("tasks")
		if err != nil {
			return err
		}
		return v.ObjectsAt(head.Addr, init.Type, "tasks", func(t ctype.Object) error {
			pid, err := t.Number("pid")
			if err != nil {
				return err
			}
			name, err := t.Text("comm")
			fmt.Printf("%6d %q\n", pid, name)
			return err
		})
	})
	if err != nil {
		log.Fatal(err)
	}
}
