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
		idle, err := v.Var("init_task")
		if err != nil {
			return err
		}
		return v.ObjectsIn(idle, "tasks", "task_struct", "tasks", func(t ctype.Object) error {
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
