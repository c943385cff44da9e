// Command hidden looks for processes that are not in the kernel's list of all
// processes but still hang below the one that started them.
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
		first, err := hidden(v)
		if err != nil || len(first) == 0 {
			return err
		}
		second, err := hidden(v) // some may just have ended: believe two looks
		for pid, name := range second {
			if _, ok := first[pid]; ok {
				fmt.Printf("%d %q\n", pid, name)
			}
		}
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
}

// hidden names, by PID, who is in the tree of processes but not in their list.
func hidden(v *vmscope.View) (map[int64]string, error) {
	idle, err := v.Var("init_task")
	found := make(map[int64]string)
	for todo := []ctype.Object{idle}; len(todo) > 0 && err == nil; todo = todo[1:] {
		const task = "task_struct"
		err = v.ObjectsIn(todo[0], "signal.thread_head", task, "thread_node", func(thread ctype.Object) error {
			return v.ObjectsIn(thread, "children", task, "sibling", func(c ctype.Object) error {
				pid, err := c.Number("pid")
				if _, seen := found[pid]; err != nil || seen {
					return err
				}
				todo = append(todo, c)
				found[pid], err = c.Text("comm")
				return err
			})
		})
	}
	if err != nil {
		return nil, err
	}
	list, err := v.Tasks()
	for _, t := range list {
		delete(found, int64(t.PID))
	}
	return found, err
}
